/** Disks that change their size: what is new reads as zeros, what is cut off is gone. */

import { describe, expect, it } from "vitest";
import type { Disk } from "../../../src/block/disk.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { FaultyFiles } from "../../support/faulty-files.ts";
import { asRecord } from "../../support/json.ts";
import { buildQcow2, type Qcow2Options, qcow2Bytes } from "../../support/qcow2-builder.ts";
import { imageInfo } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type DiskFiles, readDisk, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const GROWABLE = { policy: { growable: true } } as const;
const NAME = "disk.qcow2";

const random = new Random("resizing");
const backing = random.bytes(300_000);

interface SizedKind {
  readonly name: string;
  readonly clusterSize: number;
  readonly options: Qcow2Options;
  readonly backed?: boolean;
}

const OVER: Qcow2Options = { backingFile: "base.raw", backingFormat: "raw" };

const KINDS: readonly SizedKind[] = [
  { name: "64 KiB clusters", clusterSize: 65536, options: {} },
  { name: "512-byte clusters", clusterSize: 512, options: { clusterBits: 9 } },
  {
    name: "512-byte clusters, 64-bit refcounts",
    clusterSize: 512,
    options: { clusterBits: 9, refcountOrder: 6 },
  },
  {
    name: "512-byte clusters, 1-bit refcounts",
    clusterSize: 512,
    options: { clusterBits: 9, refcountOrder: 0 },
  },
  { name: "v2", clusterSize: 4096, options: { clusterBits: 12, version: 2 } },
  { name: "sub-clusters", clusterSize: 16384, options: { clusterBits: 14, extendedL2: true } },
  {
    name: "a backing file",
    clusterSize: 4096,
    options: { clusterBits: 12, ...OVER },
    backed: true,
  },
  {
    name: "a backing file, v2",
    clusterSize: 4096,
    options: { clusterBits: 12, version: 2, ...OVER },
    backed: true,
  },
  {
    name: "sub-clusters over a backing file",
    clusterSize: 16384,
    options: { clusterBits: 14, extendedL2: true, ...OVER },
    backed: true,
  },
];

/** A disk of `size` bytes, whose contents follow it in `model` through all changes. */
class ModelledDisk {
  readonly disk: WritableDisk;
  model: Buffer;

  constructor(disk: WritableDisk, model: Buffer) {
    this.disk = disk;
    this.model = model;
  }

  resize(size: number): void {
    this.disk.disk.resize(size);
    const rounded = Math.ceil(size / 512) * 512;
    const model = Buffer.alloc(rounded);
    this.model.copy(model);
    this.model = model;
    expect(this.disk.disk.currentSize()).toBe(rounded);
    expectBytes(this.disk.read(), model, `resized to ${size}`);
  }

  write(offset: number, length: number): void {
    const bytes = random.bytes(length);
    this.disk.write(offset, bytes);
    bytes.copy(this.model, offset);
    expectBytes(this.disk.read(), this.model, `written at ${offset}`);
  }
}

async function virtualSizeOf(files: DiskFiles, name: string): Promise<number> {
  return Number(asRecord(await imageInfo([files.path(name)]))["virtual-size"]);
}

/** An image as qemu-img makes it: without an L1 table if the disk is empty. */
function imageOf({ options, clusterSize }: SizedKind, size: number): Buffer {
  const built = buildQcow2({ ...options, virtualSize: size });
  if (size > 0) return built.bytes;
  const l1 = built.region("l1").offset;
  return built
    .setHeader("l1_table_offset", 0)
    .setRefcount(l1 / clusterSize, 0)
    .truncated(l1);
}

async function withResizable(
  kind: SizedKind,
  size: number,
  body: (disk: ModelledDisk) => void,
): Promise<void> {
  await withDiskFiles(async (files) => {
    files.put("base.raw", backing);
    files.put(NAME, imageOf(kind, size));
    const model = Buffer.alloc(size);
    if (kind.backed === true) backing.copy(model);
    const modelled = files.use(
      NAME,
      (disk) => {
        const sample = new ModelledDisk(disk, model);
        body(sample);
        return sample;
      },
      GROWABLE,
    );
    await files.expectClean(NAME);
    expect(await virtualSizeOf(files, NAME)).toBe(modelled.model.length);
    expectBytes(await files.converted(NAME), modelled.model, "as qemu-img reads it");
    files.use(NAME, (disk) => expectBytes(disk.read(), modelled.model, "opened again"));
    expectBytes(files.bytes("base.raw"), backing);
  });
}

describe.each(KINDS)("a growable disk with $name", (kind) => {
  const { clusterSize } = kind;
  const start = 2 * clusterSize + 512;

  it.each([
    { what: "the same", size: start },
    { what: "a sector more", size: start + 512 },
    { what: "a byte more", size: start + 1 },
    { what: "up to the end of the cluster", size: 3 * clusterSize },
    { what: "a byte past the cluster", size: 3 * clusterSize + 1 },
    { what: "into the middle of what the backing file has", size: 150_000 },
    { what: "past all that there is", size: 700_000 },
    { what: "a sector less", size: start - 512 },
    { what: "one cluster", size: clusterSize },
    { what: "one sector", size: 1 },
    { what: "nothing", size: 0 },
  ])("becomes $what", async ({ size }) => {
    await withResizable(kind, start, (disk) => {
      disk.write(clusterSize + 7, clusterSize);
      disk.resize(size);
    });
  });

  it("has zeros where it was cut off and grows again", async () => {
    await withResizable(kind, start + 4 * clusterSize, (disk) => {
      disk.write(100, 5 * clusterSize);
      for (const size of [2 * clusterSize + 512, 2 * clusterSize - 512, 512, 0]) {
        disk.resize(size);
        disk.resize(start + 5 * clusterSize);
        disk.write(start, 2 * clusterSize);
      }
    });
  });

  it("grows from nothing, and is written to", async () => {
    await withResizable(kind, 0, (disk) => {
      disk.resize(clusterSize * 3 + 512);
      disk.write(clusterSize - 9, clusterSize + 100);
      disk.resize(400_000);
      disk.write(399_000, 1000);
    });
  });

  it("grows step by step, over all that must become larger with it", async () => {
    await withResizable(kind, 512, (disk) => {
      for (let size = 1000; size < 1_500_000; size = Math.floor(size * 1.9)) {
        disk.resize(size);
        disk.write(disk.model.length - 600, 600);
      }
    });
  });

  it("shows the new size to other threads, with all that is in it", async () => {
    await withResizable(kind, start, (disk) => {
      const other = disk.disk.asOtherThread();
      disk.write(0, start);
      expectBytes(readDisk(other), disk.model, "another thread");
      disk.resize(500_000);
      disk.write(450_000, 20_000);
      expect(other.currentSize()).toBe(disk.model.length);
      expectBytes(readDisk(other), disk.model, "another thread, larger");
      other.resize(100_000);
      disk.model = disk.model.subarray(0, 100_352);
      expect(disk.disk.disk.currentSize()).toBe(100_352);
      expectBytes(disk.disk.read(), disk.model, "smaller");
    });
  });
});

/** Writes as a thread that has looked at the size before it changed. */
function writeLate(disk: Disk, offset: number, length: number): void {
  const source = NativeBuffer.allocate(length);
  source.bytes.fill(0xaa);
  disk.write(offset, length, source, 0);
}

describe("what another thread writes past the end of a disk that has just become smaller", () => {
  it.each(KINDS)("is lost: $name", async (kind) => {
    const size = 2 * kind.clusterSize + 512;
    await withResizable(kind, 6 * kind.clusterSize, (disk) => {
      disk.write(0, 5 * kind.clusterSize);
      const other = disk.disk.asOtherThread();
      disk.resize(size);
      writeLate(other, 3 * kind.clusterSize, kind.clusterSize + 100);
      other.preallocate(4 * kind.clusterSize, kind.clusterSize);
      writeLate(other, size - 300, 3 * kind.clusterSize);
      disk.model.fill(0xaa, size - 300);
      disk.resize(6 * kind.clusterSize);
    });
  });

  it("is lost, and makes a raw file no longer", async () => {
    await withDiskFiles(async (files) => {
      files.put("disk.raw", Buffer.alloc(65536, 1));
      files.use(
        "disk.raw",
        (disk) => {
          const other = disk.asOtherThread();
          disk.disk.resize(4096);
          writeLate(other, 8192, 4096);
          other.preallocate(8192, 4096);
          writeLate(other, 4000, 1000);
        },
        { ...GROWABLE, format: "raw" },
      );
      const expected = Buffer.alloc(4096, 1).fill(0xaa, 4000);
      expectBytes(files.bytes("disk.raw"), expected);
    });
  });

  it("does not come between the cut of a raw file and the look at its new length", async () => {
    await withDiskFiles(async (files) => {
      files.put("disk.raw", Buffer.alloc(65536, 1));
      // Word 1 of the lock, as access-lock.ts has it.
      let isExcluding: () => boolean = () => false;
      const cuts: unknown[] = [];
      const watched = new FaultyFiles(({ kind, length }) => {
        if (kind === "length") cuts.push([length, isExcluding()]);
        return "works";
      });
      files.use(
        "disk.raw",
        (disk) => {
          const words = new Int32Array(disk.chain.writing?.lock ?? new ArrayBuffer(8));
          isExcluding = () => words[1] === 1;
          disk.disk.resize(4096);
        },
        { ...GROWABLE, format: "raw", attachFile: watched.attach },
      );
      expect(cuts).toEqual([[4096, true]]);
    });
  });
});

describe("limits of sizes", () => {
  it.each([
    // 32 MiB of L1 table, 8 bytes for 32 KiB each.
    { clusterBits: 9, max: 2 ** 37 },
    { clusterBits: 12, max: 2 ** 43 },
  ])(
    "are those of the L1 table for clusters of 2^$clusterBits",
    async ({ clusterBits, max }) => {
      await withDiskFiles(async (files) => {
        files.put(NAME, qcow2Bytes({ clusterBits, virtualSize: 65536 }));
        const before = files.use(
          NAME,
          (disk) => {
            disk.fill(100, 1000, 1);
            for (const size of [max + 1, max * 2, 2 ** 52, Number.MAX_SAFE_INTEGER]) {
              expect(() => disk.disk.resize(size)).toThrow(
                expect.objectContaining({ code: "EFBIG" }),
              );
              expect(disk.disk.currentSize()).toBe(65536);
            }
            return disk.read();
          },
          GROWABLE,
        );
        await files.expectClean(NAME);
        expectBytes(await files.converted(NAME), before);
        files.use(
          NAME,
          (disk) => {
            disk.disk.resize(max);
            expect(disk.disk.currentSize()).toBe(max);
            disk.fill(max - 1000, 1000, 2);
            expectBytes(disk.read(max - 1000, 1000), Buffer.alloc(1000, 2));
            expectBytes(disk.read(0, 65536), before);
          },
          GROWABLE,
        );
        await files.expectClean(NAME);
        expect(await virtualSizeOf(files, NAME)).toBe(max);
      });
    },
    60_000,
  );

  it("are those of the host for raw files", async () => {
    await withDiskFiles(async (files) => {
      files.put("disk.raw", Buffer.alloc(1000, 1));
      files.use(
        "disk.raw",
        (disk) => {
          expect(disk.disk.currentSize()).toBe(1024);
          expect(() => disk.disk.resize(Number.MAX_SAFE_INTEGER)).toThrow(
            expect.objectContaining({ code: "EFBIG" }),
          );
          disk.disk.resize(5000);
          expect(disk.disk.currentSize()).toBe(5120);
          disk.fill(5000, 120, 2);
          disk.disk.resize(100);
          expect(disk.disk.currentSize()).toBe(512);
          disk.disk.resize(2000);
          const expected = Buffer.alloc(2048);
          expected.fill(1, 0, 512);
          expectBytes(disk.read(), expected);
        },
        { ...GROWABLE, format: "raw" },
      );
      expect(files.bytes("disk.raw").length).toBe(2048);
    });
  });
});

describe("sizes of disks with a data file", () => {
  it.each([{ raw: false }, { raw: true }])(
    "are those of the data file too (raw: $raw)",
    async ({ raw }) => {
      await withDiskFiles(async (files) => {
        const size = 3 * 65536;
        const data = random.bytes(size);
        const dataFile = files.put("disk.data", data);
        files.put(
          NAME,
          qcow2Bytes({
            dataFile,
            virtualSize: size,
            clusters: Object.fromEntries(
              [0, 1, 2].map((index) => {
                const bytes = data.subarray(index * 65536, (index + 1) * 65536);
                return [index, { kind: "data", bytes } as const];
              }),
            ),
            header: { autoclear_features: raw ? 2 : 0 },
          }),
        );
        for (const changed of [5 * 65536 + 512, 2 * 65536 + 512, 4 * 65536]) {
          const shown = files.use(
            NAME,
            (disk) => {
              disk.disk.resize(changed);
              return disk.read();
            },
            GROWABLE,
          );
          const expected = Buffer.alloc(changed);
          data.copy(expected, 0, 0, 2 * 65536 + 512);
          if (changed > size) data.copy(expected);
          if (changed === 4 * 65536) expected.fill(0, 2 * 65536 + 512);
          expectBytes(shown, expected, `resized to ${changed}`);
          await files.expectClean(NAME);
          expectBytes(await files.converted(NAME), expected, "as qemu-img reads it");
          if (raw) expectBytes(files.bytes("disk.data"), expected, "the data file alone");
          else expect(files.bytes("disk.data").length).toBe(changed);
        }
      });
    },
  );
});

describe("sizes of disks with snapshots", () => {
  it("do not change in version 2, whose snapshots do not know their own", async () => {
    await withDiskFiles(async (files) => {
      const snapshots = [{ name: "one", extra: Buffer.alloc(0) }];
      files.put(NAME, qcow2Bytes({ version: 2, virtualSize: 65536 * 3, snapshots }));
      const before = files.bytes(NAME);
      files.use(
        NAME,
        (disk) => {
          for (const size of [65536, 65536 * 4]) {
            expect(() => disk.disk.resize(size)).toThrow(/snapshot/);
          }
        },
        GROWABLE,
      );
      await files.expectClean(NAME);
      expectBytes(files.bytes(NAME), before);
    });
  });

  it("change in version 3, and those of the snapshots stay", async () => {
    await withDiskFiles(async (files) => {
      const bytes = random.bytes(65536);
      files.put(
        NAME,
        qcow2Bytes({
          virtualSize: 65536 * 3,
          clusters: { 1: { kind: "data", bytes }, 2: { kind: "data", bytes } },
          snapshots: [{ name: "one" }],
        }),
      );
      files.use(
        NAME,
        (disk) => {
          disk.disk.resize(65536 + 512);
          disk.disk.resize(65536 * 2000);
          disk.fill(65536 * 1999, 65536, 7);
        },
        GROWABLE,
      );
      await files.expectClean(NAME);
      files.use(NAME, (disk) => {
        const snapshot = disk.disk.openSnapshot(0);
        expect(snapshot.virtualSize).toBe(65536 * 3);
        expectBytes(readDisk(snapshot), Buffer.concat([Buffer.alloc(65536), bytes, bytes]));
        const expected = Buffer.alloc(65536 * 4);
        bytes.copy(expected, 65536, 0, 512);
        expectBytes(disk.read(0, 65536 * 4), expected);
      });
    });
  });
});
