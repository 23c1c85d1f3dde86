// Backing files of QEMU's images, changed by us: qemu-img sees the new one, or the old one after a crash, and finds all else as it was.

import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { BackingReference } from "../../src/formats/driver.ts";
import { setBackingFile } from "../../src/formats/formats.ts";
import { LocalFile } from "../../src/storage/local-file.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { asRecord } from "../support/json.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { run, runJson } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

type Format = "qcow2" | "qed";

interface Kind {
  readonly title: string;
  readonly format: Format;
  readonly options: Readonly<Record<string, string>>;
  /** Bytes of names that certainly fit twice. */
  readonly nameMax: number;
  readonly bitmap?: true;
}

const KINDS: readonly Kind[] = [
  { title: "qcow2", format: "qcow2", options: {}, nameMax: 1023 },
  { title: "qcow2 with a bitmap", format: "qcow2", options: {}, nameMax: 1023, bitmap: true },
  { title: "version 2", format: "qcow2", options: { compat: "0.10" }, nameMax: 1023 },
  {
    title: "small clusters, compressed with zstd",
    format: "qcow2",
    options: { cluster_size: "512", compression_type: "zstd" },
    nameMax: 370,
  },
  {
    title: "a data file",
    format: "qcow2",
    options: { data_file: "DIRECTORY/data.raw", cluster_size: "8k" },
    nameMax: 1023,
  },
  { title: "QED", format: "qed", options: {}, nameMax: 1023 },
  { title: "small QED", format: "qed", options: { cluster_size: "4096" }, nameMax: 1023 },
];

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("backing-name");
  await createImage(join(directory, "base.raw"), "raw", { size: 2 ** 20 });
  await qemuIo(join(directory, "base.raw"), "raw", ["write -P 1 0 1M"]);
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function makeImage(kind: Kind): Promise<string> {
  const path = join(directory, `disk.${kind.format}`);
  const options = Object.entries(kind.options).map(([name, value]) => {
    return [name, value.replace("DIRECTORY", directory)] as const;
  });
  await createImage(path, kind.format, {
    size: 2 ** 20,
    options: Object.fromEntries(options),
    backing: { file: join(directory, "base.raw"), format: "raw" },
  });
  await qemuIo(path, kind.format, ["write -P 2 64k 64k"]);
  if (kind.bitmap === true) await run("qemu-img", ["bitmap", "--add", path, "dirty"]);
  return path;
}

/** What qemu-img says of an image; it does not look at the backing file. */
async function infoOf(path: string): Promise<{ backing: string; rest: unknown }> {
  const {
    "backing-filename": name,
    "full-backing-filename": _full,
    "backing-filename-format": format,
    "actual-size": _size,
    filename: _filename,
    ...rest
  } = asRecord(await imageInfo([path]));
  return { backing: name === undefined ? "none" : `${name} (${format})`, rest };
}

function textOf(format: Format, backing: BackingReference | undefined): string {
  if (backing === undefined) return "none";
  const isSaid = format === "qcow2" || backing.format === "raw";
  return `${backing.name} (${isSaid ? backing.format : undefined})`;
}

function randomBacking(random: Random, nameMax: number): BackingReference | undefined {
  if (random.below(5) === 0) return undefined;
  const length = random.between(1, random.pick([8, 40, nameMax]));
  const name = random.text(length).toString();
  return { name, format: random.pick([undefined, "raw", "qcow2", "qed"]) };
}

/** The whole disk over base.raw, in one number. */
async function contentOf(path: string): Promise<string> {
  const raw = join(directory, "content.raw");
  await run("qemu-img", ["convert", "-O", "raw", path, raw]);
  return (await run("sha256sum", [raw])).stdout.split(" ")[0] ?? "";
}

describe("qemu-img sees the backing file that setBackingFile has set:", () => {
  it.each(KINDS.map((kind) => [kind.title, kind] as const))("%s", async (title, kind) => {
    const random = new Random(title);
    const path = await makeImage(kind);
    const content = await contentOf(path);
    const { rest } = await infoOf(path);
    const file = LocalFile.open(path, "read-write");
    try {
      for (let step = 0; step < byScale(6, 100); step++) {
        const backing = randomBacking(random, kind.nameMax);
        setBackingFile(kind.format, file, backing);
        expect(await infoOf(path)).toEqual({ backing: textOf(kind.format, backing), rest });
      }
      setBackingFile(kind.format, file, { name: join(directory, "base.raw"), format: "raw" });
    } finally {
      file.close();
    }
    expect(await contentOf(path)).toBe(content);
    const check = await runJson("qemu-img", ["check", "--output", "json", path]);
    expect(check).toMatchObject({ "check-errors": 0 });
    expect(asRecord(check)["corruptions"] ?? 0).toBe(0);
    // QEMU changes it in turn, and keeps what it does not know.
    await run("qemu-img", ["rebase", "-u", "-b", "", path]);
    expect(await infoOf(path)).toEqual({ backing: "none", rest });
  });
});

describe("after a crash, qemu-img sees the old backing file or the new one:", () => {
  it.each(KINDS.map((kind) => [kind.title, kind] as const))("%s", async (title, kind) => {
    const random = new Random(`crash of ${title}`);
    const path = await makeImage(kind);
    const { rest } = await infoOf(path);
    const state = join(directory, `state.${kind.format}`);
    let content = SparseFile.load(path);
    let old = (await infoOf(path)).backing;
    for (let step = 0; step < byScale(1, 20); step++) {
      const backing = randomBacking(random, kind.nameMax);
      const initial = content.clone();
      const log: RecordingLog = { operations: [] };
      const storage = new RecordingStorage(path, content, log, 0);
      setBackingFile(kind.format, storage, backing);
      const wanted = textOf(kind.format, backing);
      const states = new CrashStates([initial], log);
      for (let position = 0; position <= log.operations.length; position++) {
        const torn = states.random(position, random.pick(STRATEGIES), random);
        for (const [file] of [states.prefix(position), torn]) {
          file?.save(state);
          const found = await infoOf(state);
          expect([old, wanted]).toContain(found.backing);
          expect(found.rest).toEqual(rest);
        }
      }
      old = wanted;
      content = storage.content;
    }
  });
});
