/** Changing a size is given up after each of its pieces: the disk has the size that it had, and nothing is kept for more. */

import { describe, expect, it } from "vitest";
import type { GrowthPreallocation } from "../../../src/block/disk-resizer.ts";
import { ResizeJob, type ResizeRequest } from "../../../src/block/resize-request.ts";
import { type Faults, FaultyFiles } from "../../support/faulty-files.ts";
import { type CreateOptions, createImage } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type DiskFiles, readDisk, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const GROWABLE = { policy: { growable: true } } as const;
const contents = new Random("resize-job").bytes(MIB + 512);

interface Kind {
  readonly name: "disk.qcow2" | "disk.raw" | "disk.qed";
  readonly what: string;
  readonly preallocation: GrowthPreallocation;
  /** Bytes. */
  readonly growth: number;
  readonly options?: NonNullable<CreateOptions["options"]>;
  /** A longer one, of which nothing may show. */
  readonly hasBacking?: boolean;
}

const QCOW2 = { name: "disk.qcow2", what: "qcow2" } as const;
const OVERLAY = { name: "disk.qcow2", what: "a qcow2 overlay", hasBacking: true } as const;
const V2 = { options: { compat: "0.10" } } as const;

const KINDS: readonly Kind[] = [
  { ...QCOW2, preallocation: "off", growth: 2 * GIB },
  { ...QCOW2, preallocation: "metadata", growth: 1200 * MIB },
  { ...QCOW2, preallocation: "falloc", growth: 300 * MIB },
  { ...QCOW2, preallocation: "full", growth: 33 * MIB },
  { ...OVERLAY, preallocation: "off", growth: 2 * GIB },
  { ...OVERLAY, what: "a qcow2 overlay, v2", ...V2, preallocation: "off", growth: 33 * MIB },
  { name: "disk.raw", what: "raw", preallocation: "off", growth: 2 * GIB },
  { name: "disk.raw", what: "raw", preallocation: "falloc", growth: 300 * MIB },
  { name: "disk.raw", what: "raw", preallocation: "full", growth: 33 * MIB },
  { name: "disk.qed", what: "qed", preallocation: "off", growth: 2 * GIB },
];

function growing(bytes: number, preallocation: GrowthPreallocation): ResizeRequest {
  return { change: { sign: "+", bytes: BigInt(bytes) }, mayShrink: false, preallocation };
}

function shrinking(bytes: number): ResizeRequest {
  return { change: { sign: "", bytes: BigInt(bytes) }, mayShrink: true, preallocation: "off" };
}

async function make(files: DiskFiles, { name, options, hasBacking }: Kind): Promise<void> {
  const format = name === "disk.qed" ? "qed" : name === "disk.raw" ? "raw" : "qcow2";
  if (hasBacking === true) files.put("base.raw", Buffer.alloc(8 * MIB, 9));
  const base = { file: files.path("base.raw"), format: "raw" } as const;
  await createImage(files.path(name), format, {
    size: contents.length,
    ...(options && { options }),
    ...(hasBacking === true && { backing: base }),
  });
  files.use(name, (disk) => disk.write(0, contents));
}

/**
 * Begins, does so many pieces, and gives it up.
 *
 * @returns whether it was given up: else the end was reached
 */
function giveUpAfter(
  files: DiskFiles,
  name: string,
  request: ResizeRequest,
  pieces: number,
): boolean {
  return files.use(
    name,
    ({ disk }) => {
      const job = new ResizeJob(disk, request);
      for (let done = 0; done < pieces; done++) {
        if (job.step()) return false;
        if (done === 0) job.flush();
      }
      job.abandon();
      return true;
    },
    GROWABLE,
  );
}

async function expectDisk(files: DiskFiles, name: string, expected: Buffer): Promise<void> {
  if (name !== "disk.raw") await files.expectClean(name);
  expectBytes(await files.converted(name), expected, "as qemu-img reads it");
}

describe.each(KINDS)("$what that grows, preallocation=$preallocation, and is stopped", (kind) => {
  const { name, growth, preallocation } = kind;

  it("has its size, its contents and its room", async () => {
    await withDiskFiles(async (files) => {
      await make(files, kind);
      const stored = files.stored(name);
      const request = growing(growth, preallocation);
      for (let pieces = 0; giveUpAfter(files, name, request, pieces); pieces++) {
        await expectDisk(files, name, contents);
        // A table that had to move may be larger.
        expect(files.stored(name)).toBeLessThan(stored + MIB);
      }
      files.use(name, ({ disk }) => expect(disk.currentSize()).toBe(contents.length + growth));
      if (name !== "disk.raw") await files.expectClean(name);
    });
  });
});

describe.each([
  { ...QCOW2, preallocation: "off", growth: 0 },
  { ...OVERLAY, preallocation: "off", growth: 0 },
  { name: "disk.raw", what: "raw", preallocation: "off", growth: 0 },
] satisfies readonly Kind[])("$what that shrinks and is stopped", (kind) => {
  const { name } = kind;
  const kept = 64 * 1024 + 512;

  it("has its size, and all that would not have been cut off", async () => {
    await withDiskFiles(async (files) => {
      await make(files, kind);
      const request = shrinking(kept);
      for (let pieces = 0; giveUpAfter(files, name, request, pieces); pieces++) {
        if (name !== "disk.raw") await files.expectClean(name);
        const found = await files.converted(name);
        expect(found.length).toBe(contents.length);
        expectBytes(found.subarray(0, kept), contents.subarray(0, kept));
        // Of the rest, what was not zeroed yet.
        for (let offset = kept; offset < found.length; offset += 512) {
          const sector = found.subarray(offset, offset + 512);
          if (sector.some((byte) => byte !== 0)) {
            expectBytes(sector, contents.subarray(offset, offset + 512));
          }
        }
      }
      await expectDisk(files, name, contents.subarray(0, kept));
    });
  });
});

/** Nothing is written any more from a call on, or that call alone is not made. */
const FULL_HOSTS: readonly { readonly what: string; readonly faults: (n: number) => Faults }[] = [
  {
    what: "once",
    faults: (n) => (call, index) =>
      index === n && call.kind !== "sync" ? { code: "ENOSPC" } : "works",
  },
  {
    what: "from then on",
    faults: (n) => (call, index) =>
      index >= n && call.kind !== "sync" ? { code: "ENOSPC", half: true } : "works",
  },
];

describe.each([
  { ...QCOW2, options: { cluster_size: 2048 }, preallocation: "off", growth: 0 },
  { ...OVERLAY, options: { cluster_size: 2048 }, preallocation: "off", growth: 0 },
] satisfies readonly Kind[])("$what that shrinks on a full host", (kind) => {
  const { name } = kind;
  const kept = 64 * 1024 + 512;

  it.each(FULL_HOSTS)("has its old size if it fails, else the new one: $what", async (host) => {
    await withDiskFiles(async (files) => {
      for (let n = 0, isHit = true; isHit; n++) {
        await make(files, kind);
        const faulty = new FaultyFiles();
        const shrink = ({ disk }: WritableDisk): void => {
          const job = new ResizeJob(disk, shrinking(kept));
          faulty.calls.length = 0;
          faulty.faults = host.faults(n);
          const isDone = isWhole(job);
          isHit = faulty.calls.length > n;
          faulty.faults = () => "works";
          expect(disk.currentSize(), `call ${n}`).toBe(isDone ? kept : contents.length);
          expectBytes(readDisk(disk, 0, kept), contents.subarray(0, kept));
        };
        files.use(name, shrink, { ...GROWABLE, attachFile: faulty.attach });
        await files.expectClean(name);
      }
      await expectDisk(files, name, contents.subarray(0, kept));
    });
  });
});

function isWhole(job: ResizeJob): boolean {
  try {
    while (!job.step());
    return true;
  } catch {
    return false;
  }
}
