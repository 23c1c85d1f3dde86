/** Making an image is given up after each of its pieces: nothing is left of it. */

import fs from "node:fs";
import { describe, expect, it } from "vitest";
import { type CreateRequest, planImage } from "../../../src/block/create-image.ts";
import { CreateJob } from "../../../src/block/create-job.ts";
import { qemuCheck } from "../../support/check-oracle.ts";
import { run } from "../../support/run.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type DiskFiles, withDiskFiles } from "./writable-disk.ts";

const MIB = 2 ** 20;

type Format = CreateRequest["format"];
type Qcow2 = Extract<Format, { name: "qcow2" }>["options"];

function qcow2(options: Partial<Qcow2>): Format {
  return {
    name: "qcow2",
    options: {
      version: 3,
      clusterSize: 65536,
      refcountBits: 16,
      extendedL2: false,
      lazyRefcounts: false,
      compressionType: "zlib",
      preallocation: "off",
      dataFile: undefined,
      encryption: undefined,
      ...options,
    },
  };
}

const dataFile = { name: "new.data", raw: false };

/** The formats, and how many pieces there are at least. */
const KINDS: readonly (readonly [name: string, format: Format, size: number, pieces: number])[] = [
  ["raw", { name: "raw", preallocation: "off" }, 5 * MIB, 1],
  ["raw, full", { name: "raw", preallocation: "full" }, 5 * MIB, 6],
  ["raw, falloc", { name: "raw", preallocation: "falloc" }, 300 * MIB, 3],
  ["qcow2", qcow2({}), 5 * MIB, 4],
  ["qcow2, metadata", qcow2({ preallocation: "metadata", clusterSize: 512 }), 300 * MIB, 8],
  ["qcow2, falloc", qcow2({ preallocation: "falloc" }), 300 * MIB, 6],
  ["qcow2, full", qcow2({ preallocation: "full" }), 5 * MIB, 10],
  ["qcow2 with a data file", qcow2({ preallocation: "full", dataFile }), 5 * MIB, 9],
  ["qcow2 with a raw data file", qcow2({ dataFile: { ...dataFile, raw: true } }), 5 * MIB, 4],
  ["qed", { name: "qed", options: { clusterSize: 65536, tableSize: 4 } }, 5 * MIB, 1],
];

const NAME = "new.img";

function start(files: DiskFiles, format: Format, size: number): CreateJob {
  const named =
    format.name === "qcow2" && format.options.dataFile !== undefined
      ? qcow2({ ...format.options, dataFile: { ...dataFile, name: files.path(dataFile.name) } })
      : format;
  const request = { path: files.path(NAME), size, backing: undefined, format: named };
  return new CreateJob(planImage(request));
}

/**
 * Calls `body` with a job of which so many pieces are done, for every number of them before the end.
 *
 * @returns the number of pieces
 */
function atEachPiece(
  begin: () => CreateJob,
  body: (job: CreateJob, pieces: number) => void,
): number {
  for (let pieces = 0; ; pieces++) {
    const job = begin();
    let isDone = false;
    for (let done = 0; done < pieces && !isDone; done++) isDone = job.step();
    if (isDone) return pieces;
    body(job, pieces);
  }
}

describe.each(KINDS)("a new image (%s) that is given up", (_, format, size, least) => {
  it("leaves no file, whatever was done", async () => {
    await withDiskFiles(async (files) => {
      const pieces = atEachPiece(
        () => start(files, format, size),
        (job) => {
          expect(job.abandon()).toBe("nothing");
          expect(fs.readdirSync(files.directory)).toEqual([]);
        },
      );
      expect(pieces).toBeGreaterThanOrEqual(least);
      if (format.name === "raw") expect(fs.statSync(files.path(NAME)).size).toBe(size);
      else expect((await qemuCheck(files.path(NAME), format.name)).counts?.status).toBe(0);
    });
  });

  it("leaves files that were there as they were, or empty", async () => {
    await withDiskFiles(async (files) => {
      const old = Buffer.alloc(100_000, 7);
      atEachPiece(
        () => {
          for (const name of [NAME, dataFile.name]) files.put(name, old);
          return start(files, format, size);
        },
        (job, pieces) => {
          job.flush();
          expect(job.abandon()).toBe(pieces === 0 ? "untouched" : "empty");
          expectBytes(files.bytes(NAME), pieces === 0 ? old : Buffer.alloc(0));
          const hasData = format.name === "qcow2" && format.options.dataFile !== undefined;
          const isOld = pieces === 0 || !hasData;
          expectBytes(files.bytes(dataFile.name), isOld ? old : Buffer.alloc(0));
        },
      );
    });
  });
});

describe("an image that is given up", () => {
  it("is used by nobody", async () => {
    await withDiskFiles(async (files) => {
      const job = start(files, qcow2({ preallocation: "metadata" }), MIB);
      fs.writeFileSync(files.path(NAME), "");
      job.step();
      job.abandon();
      await run("qemu-img", ["create", "-q", "-f", "qcow2", files.path(NAME), "1M"]);
      await files.expectClean(NAME);
    });
  });

  it("goes by the name that it has, if another one was a link to it", async () => {
    await withDiskFiles(async (files) => {
      fs.symlinkSync("target.img", files.path(NAME));
      const job = start(files, qcow2({}), MIB);
      job.step();
      expect(fs.existsSync(files.path("target.img"))).toBe(true);
      expect(job.abandon()).toBe("nothing");
      expect(fs.readdirSync(files.directory)).toEqual([NAME]);
    });
  });
});
