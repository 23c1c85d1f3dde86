/** Copy-on-read: what it reads and writes, in which order, and what two threads make of one disk. */

import { describe, expect, it } from "vitest";
import type { Disk } from "../../../src/block/disk.ts";
import type { Discard } from "../../../src/block/write-policy.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { COUNTER, COUNTERS } from "../../../src/threads/counters.ts";
import { readBitmaps } from "../../support/bitmap-reader.ts";
import { type Call, FaultyFiles, type Read } from "../../support/faulty-files.ts";
import { createImage } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { run } from "../../support/run.ts";
import { byScale } from "../../support/scale.ts";
import { bundleWorker, runWorker } from "../bundled-worker.ts";
import { expectBytes } from "../expect-bytes.ts";
import { OVERLAY_KINDS, type OverlayKind, putOverlay, spoilBacking } from "./overlays.ts";
import type { ResizingWorkerData } from "./resizing-worker.ts";
import { type DiskFiles, readDisk, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const CLUSTER = 4096;
const [PLAIN] = OVERLAY_KINDS;
if (PLAIN === undefined) throw new Error("there is no kind of overlay");

const hasZeros = ({ options }: OverlayKind): boolean => options?.version !== 2;

/** Overlaps among reads of the backing file. */
function readTwice(reads: readonly Read[]): string[] {
  const own = reads.filter(({ path }) => path.endsWith("base.raw"));
  expect(own.length).toBeGreaterThan(0);
  const sorted = own.toSorted((a, b) => a.offset - b.offset);
  return sorted.flatMap(({ offset, length }, index) => {
    const before = sorted[index - 1];
    if (before === undefined || before.offset + before.length <= offset) return [];
    return [`${before.offset}+${before.length} and ${offset}+${length}`];
  });
}

describe.each(OVERLAY_KINDS.filter(({ clusterBits }) => clusterBits <= 16))(
  "the backing file of an overlay with $name",
  (kind) => {
    it("is read once, whatever is read and written in which order", async () => {
      await withDiskFiles(async (files) => {
        const clusterSize = 2 ** kind.clusterBits;
        const zero = hasZeros(kind) ? "z" : "D";
        const content = putOverlay(files, kind, {
          clusters: `....D....${zero}${zero}......D...........`,
          backing: "DD0D0DDD00DDDDD0000DDDDDDD00",
        });
        const faulty = new FaultyFiles();
        const random = new Random(`read once ${kind.name}`);
        files.use(
          kind.file,
          (disk) => {
            for (let turn = 0; turn < 40; turn++) {
              const offset = random.below(content.length);
              const length = random.between(1, Math.min(content.length - offset, 3 * clusterSize));
              const shown = readDisk(disk.disk, offset, length);
              expectBytes(shown, content.subarray(offset, offset + length), `turn ${turn}`);
              if (random.below(4) === 0) disk.disk.flush();
              if (random.below(4) > 0) continue;
              disk.fill(offset, length, turn);
              content.fill(turn, offset, offset + length);
            }
            expectBytes(disk.read(), content);
          },
          { attachFile: faulty.attach, policy: { detectZeroes: "off" } },
        );
        expect(readTwice(faulty.reads)).toEqual([]);
        await files.expectClean(kind.file);
        spoilBacking(files);
        expectBytes(await files.converted(kind.file), content);
      });
    });
  },
);

describe("clusters that follow each other", () => {
  const shape = ({ kind, length }: Call): string => `${kind} ${length}`;

  it("are stored by one write, and linked by one, when they are durable", async () => {
    await withDiskFiles(async (files) => {
      putOverlay(files, PLAIN, { clusters: ".".repeat(64), backing: "D".repeat(64) });
      const faulty = new FaultyFiles();
      files.use(
        PLAIN.file,
        ({ disk }) => {
          readDisk(disk, 63 * CLUSTER, 1);
          disk.flush();
          faulty.calls.length = 0;
          readDisk(disk, 5, 16 * CLUSTER - 10);
          readDisk(disk, 16 * CLUSTER, 32 * CLUSTER);
          readDisk(disk, 0, 48 * CLUSTER);
          const stored = [`write ${16 * CLUSTER}`, `write ${32 * CLUSTER}`];
          expect(faulty.calls.map(shape)).toEqual(stored);
          disk.flush();
          expect(faulty.calls.map(shape)).toEqual([...stored, "sync 0", `write ${48 * 8}`]);
          disk.flush();
          expect(faulty.calls.map(shape).slice(4)).toEqual(["sync 0"]);
        },
        { attachFile: faulty.attach },
      );
      await files.expectClean(PLAIN.file);
    });
  });

  it("are told to be zeros by one write of a table, and by nothing else", async () => {
    await withDiskFiles(async (files) => {
      putOverlay(files, PLAIN, { clusters: ".".repeat(64), backing: `D${"0".repeat(63)}` });
      const faulty = new FaultyFiles();
      const counters = new Float64Array(16);
      files.use(
        PLAIN.file,
        ({ disk }) => {
          readDisk(disk, 0, 1);
          disk.flush();
          faulty.calls.length = 0;
          readDisk(disk, CLUSTER, 63 * CLUSTER);
          expect(faulty.calls.map(shape)).toEqual([`write ${63 * 8}`]);
        },
        { attachFile: faulty.attach, counters },
      );
      expect(counters[COUNTER.copyOnReadStored]).toBe(1);
      expect(counters[COUNTER.copyOnReadZero]).toBe(63);
      expect(counters[COUNTER.copyOnReadFailed]).toBe(0);
      await files.expectClean(PLAIN.file);
    });
  });

  it("are read by whoever waits before anything is stored", async () => {
    await withDiskFiles(async (files) => {
      const shape = { clusters: ".".repeat(64), backing: "D".repeat(64) };
      const content = putOverlay(files, PLAIN, shape);
      const faulty = new FaultyFiles();
      files.use(
        PLAIN.file,
        ({ disk }) => {
          const target = NativeBuffer.allocate(content.length);
          expect(disk.readFirst(0, content.length, target, 0)).toBe(true);
          expectBytes(target.bytes, content);
          expect(faulty.calls).toEqual([]);
          disk.storeFetched();
          expect(faulty.calls.length).toBeGreaterThan(0);
          expect(disk.readFirst(0, content.length, target, 0)).toBe(false);
        },
        { attachFile: faulty.attach },
      );
    });
  });
});

describe("two threads with one disk", () => {
  const clusters = "..D...............D...........................";
  const backing = "DD0D0DDD00DDDDD0000DDDDDDD00DDDDDD";

  /** A range of whole clusters in some part of the disk. */
  function change(
    { disk, content, random }: { disk: Disk; content: Buffer; random: Random },
    [first, end]: readonly [number, number],
  ): void {
    const offset = random.between(first, end - 1);
    const length = random.between(1, Math.min(end - offset, 5 * CLUSTER));
    const source = NativeBuffer.allocate(length);
    switch (random.below(5)) {
      case 0:
      case 1:
        random.bytes(length).copy(source.bytes);
        disk.write(offset, length, source, 0);
        content.set(source.bytes, offset);
        break;
      case 2:
        disk.writeZeroes(offset, length, { unmap: random.below(2) === 0 });
        content.fill(0, offset, offset + length);
        break;
      case 3:
        disk.preallocate(offset, length);
        break;
      default:
        expectBytes(readDisk(disk, offset, length), content.subarray(offset, offset + length));
        break;
    }
    if (random.below(5) === 0) disk.flush();
    if (random.below(9) === 0) disk.maintain();
  }

  /** One thread reads, and the other one changes something before and after it is stored. */
  function takeTurns(
    a: Disk,
    b: Disk,
    { content, random, clusterSize }: { content: Buffer; random: Random; clusterSize: number },
  ): void {
    const offset = random.below(content.length);
    const length = random.between(1, Math.min(content.length - offset, 6 * clusterSize));
    const target = NativeBuffer.allocate(length);
    a.readFirst(offset, length, target, 0);
    expectBytes(
      target.bytes,
      content.subarray(offset, offset + length),
      `read ${offset}+${length}`,
    );
    // Beside what one thread has claimed the other one need not wait.
    const before = offset - (offset % clusterSize);
    const behind = Math.ceil((offset + length) / clusterSize) * clusterSize;
    if (before > 0) change({ disk: b, content, random }, [0, before]);
    if (behind < content.length) change({ disk: b, content, random }, [behind, content.length]);
    a.storeFetched();
    change({ disk: b, content, random }, [offset, offset + length]);
    change({ disk: a, content, random }, [0, content.length]);
  }

  it.each(OVERLAY_KINDS.filter(({ clusterBits }) => clusterBits <= 14))(
    "show what they wrote, however they take turns: $name",
    async (kind) => {
      const clusterSize = 2 ** kind.clusterBits;
      await withDiskFiles(async (files) => {
        const content = putOverlay(files, kind, { clusters, backing });
        const random = new Random(`two threads ${kind.name}`);
        const discard = random.pick<Discard>(["unmap", "ignore"]);
        files.use(
          kind.file,
          (one) => {
            const disks = [one.disk, one.asOtherThread()];
            for (let turn = 0; turn < byScale(120, 2000); turn++) {
              const [a, b] = random.below(2) === 0 ? disks : disks.toReversed();
              if (a !== undefined && b !== undefined) {
                takeTurns(a, b, { content, random, clusterSize });
              }
            }
            expectBytes(one.read(), content);
          },
          { policy: { discard } },
        );
        await files.expectClean(kind.file);
        spoilBacking(files);
        expectBytes(await files.converted(kind.file), content);
      });
    },
  );

  it("may shorten the disk between a read and its copy", async () => {
    const script = await bundleWorker(new URL("./resizing-worker.ts", import.meta.url));
    await withDiskFiles(async (files) => {
      // Zeros past the end of the backing file keep nobody from cutting them off.
      const backing = "D".repeat(clusters.length - 3);
      const content = putOverlay(files, PLAIN, { clusters, backing });
      const counters = new Float64Array(COUNTERS.length);
      const one = files.open(PLAIN.file, { policy: { growable: true }, counters });
      try {
        const target = NativeBuffer.allocate(4 * CLUSTER);
        expect(one.disk.readFirst(content.length - 4 * CLUSTER, 4 * CLUSTER, target, 0)).toBe(true);
        const size = content.length - 2 * CLUSTER - 512;
        const started = new SharedArrayBuffer(4);
        const data: ResizingWorkerData = { chain: one.chain, slot: 1, size, started };
        const resized = runWorker(script, data);
        // It has cut the disk off soon after that, and waits for the copy; or else it finds it stored.
        do await new Promise((resolve) => setTimeout(resolve, 50));
        while (Atomics.load(new Int32Array(started), 0) === 0);
        one.disk.storeFetched();
        await resized;
        expect(counters[COUNTER.copyOnReadFailed]).toBe(0);
        expectBytes(one.read(), content.subarray(0, size));
        one.disk.resize(content.length);
        expectBytes(one.read(), content);
      } finally {
        one.close();
      }
      await files.expectClean(PLAIN.file);
    });
  });
});

describe("persistent bitmaps", () => {
  const AUTOCLEAR = 88;

  it("stay true while nothing but copies is written", async () => {
    await withDiskFiles(async (files) => {
      const random = new Random("bitmaps");
      const content = random.bytes(64 * CLUSTER);
      files.put("base.raw", content);
      const backing = { file: files.path("base.raw"), format: "raw" } as const;
      await createImage(files.path(PLAIN.file), "qcow2", { backing });
      await run("qemu-img", ["bitmap", "--add", files.path(PLAIN.file), "one"]);
      const autoclear = (): bigint => files.bytes(PLAIN.file).readBigUInt64BE(AUTOCLEAR);
      expect(autoclear()).toBe(1n);
      files.use(PLAIN.file, (disk) => expectBytes(disk.read(), content));
      expect(autoclear(), "read").toBe(1n);
      await files.expectClean(PLAIN.file);
      expect(await readBitmaps(files.path(PLAIN.file))).toMatchObject([{ inUse: false, set: [] }]);
    });
  });
});

describe("a program that is killed while it copies", () => {
  /** Reads a part of a disk, and closes its files without more ado. */
  async function killed(
    files: DiskFiles,
    kind: OverlayKind,
    body: (disk: WritableDisk) => void,
  ): Promise<void> {
    const disk = files.open(kind.file);
    try {
      body(disk);
    } finally {
      disk.abandon();
    }
    await files.check(kind.file);
  }

  it.each(OVERLAY_KINDS.filter(({ clusterBits }) => clusterBits <= 16))(
    "leaves a disk as it was, and no leaks for long: $name",
    async (kind) => {
      const clusterSize = 2 ** kind.clusterBits;
      await withDiskFiles(async (files) => {
        const content = putOverlay(files, kind, {
          clusters: "..D.......D.............",
          backing: "DD0D0DDD00DDDDD0000DDDDD",
        });
        await killed(files, kind, ({ disk }) => readDisk(disk));
        expectBytes(await files.converted(kind.file), content, "after a read");
        await killed(files, kind, (disk) => {
          disk.read(clusterSize, 8 * clusterSize);
          disk.disk.flush();
          disk.read(9 * clusterSize, 8 * clusterSize);
          disk.fill(3 * clusterSize + 9, 100, 1);
        });
        content.fill(1, 3 * clusterSize + 9, 3 * clusterSize + 109);
        expectBytes(await files.converted(kind.file), content, "after a write");
        files.use(kind.file, (disk) => expectBytes(disk.read(), content, "opened again"));
        if (kind.file === "disk.qcow2") await files.expectClean(kind.file);
        spoilBacking(files);
        expectBytes(await files.converted(kind.file), content, "over another backing file");
      });
    },
  );
});
