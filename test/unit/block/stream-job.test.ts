import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { AttachFile } from "../../../src/block/attach-disk.ts";
import { StreamJob } from "../../../src/block/stream-job.ts";
import { StorageError } from "../../../src/errors.ts";
import { setBackingFile } from "../../../src/formats/formats.ts";
import { LocalFile } from "../../../src/storage/local-file.ts";
import type { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { withMemoryScratch } from "../../support/crash-scratch.ts";
import { createImage, type ImageFormat, qemuIo } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { checkImage, expectClean, expectDisk } from "../../support/write-images.ts";
import { WritableDisk } from "./writable-disk.ts";

const MIB = 2 ** 20;
const SIZE = 24 * MIB;
const NO_COPYING = { copyOnRead: false };

/** Bytes of a raw file that were read, in pieces of 64 KiB. */
class ReadCounts {
  readonly pieces = new Map<number, number>();
  failing = false;

  readonly attachFile: AttachFile = (file) => {
    const local = new LocalFile(file);
    if (!file.path.endsWith("base.raw")) return local;
    const readAt = local.readAt.bind(local);
    local.readAt = (target: NativeBuffer, start: number, length: number, offset: number) => {
      if (this.failing) throw new StorageError("EIO", file.path, "read failed");
      for (let at = offset - (offset % 65536); at < offset + length; at += 65536) {
        this.pieces.set(at, (this.pieces.get(at) ?? 0) + 1);
      }
      readAt(target, start, length, offset);
    };
    return local;
  };

  get most(): number {
    return Math.max(0, ...this.pieces.values());
  }
}

/** An overlay of a raw file full of data, but for a MiB of zeros that are written and a hole. */
async function withOverlay(
  format: ImageFormat,
  body: (files: { image: string; expected: string }) => Promise<void>,
  options: Readonly<Record<string, string>> = {},
): Promise<void> {
  await withMemoryScratch("stream", async (directory) => {
    const base = join(directory, "base.raw");
    const bytes = new Random("stream base").bytes(SIZE);
    bytes.fill(0, 5 * MIB, 6 * MIB);
    fs.writeFileSync(base, bytes.subarray(0, 10 * MIB));
    fs.truncateSync(base, SIZE);
    const fd = fs.openSync(base, "r+");
    fs.writeSync(fd, bytes, 18 * MIB, 6 * MIB, 18 * MIB);
    fs.closeSync(fd);
    bytes.fill(0, 10 * MIB, 18 * MIB);
    const image = join(directory, `image.${format}`);
    await createImage(image, format, { options, backing: { file: base, format: "raw" } });
    await qemuIo(image, format, ["write -q -P 7 1000k 300k"]);
    bytes.fill(7, 1000 * 1024, 1300 * 1024);
    const expected = join(directory, "expected");
    fs.writeFileSync(expected, bytes);
    await body({ image, expected });
  });
}

/** Let the image do without the backing file, as a mount does. */
function drop({ disk, chain }: WritableDisk): void {
  const [top] = chain.layers;
  if (top === undefined) throw new RangeError("no image");
  disk.dropBacking(() => {
    setBackingFile(top.layout.format, new LocalFile(top.file), undefined);
  });
}

/** As toEqual, which takes minutes for megabytes. */
function expectBytes(actual: Buffer, disk: Buffer, offset: number): void {
  expect(actual.equals(disk.subarray(offset, offset + actual.length))).toBe(true);
}

describe.each([
  ["qcow2", {}],
  ["qcow2", { compat: "0.10" }],
  ["qed", {}],
] as const)("streaming into %s %o", (format, options) => {
  it("reads nothing twice, however often it is interrupted", async () => {
    const body = async (files: { image: string; expected: string }): Promise<void> => {
      const { image, expected } = files;
      const counts = new ReadCounts();
      const { attachFile } = counts;
      for (let run = 0; run < 4; run++) {
        const writable = new WritableDisk(image, { attachFile, policy: NO_COPYING });
        const job = new StreamJob(writable.disk, 2);
        while (job.copied < 3 * MIB && !job.step());
        // What was copied is in the image when it is flushed, also if the program is killed then.
        if (run % 2 === 0) writable.close();
        else {
          writable.disk.flush();
          writable.abandon();
        }
        expect((await checkImage(image, format)).verdict).not.toBe("corrupt");
        await expectDisk(image, format, expected);
      }
      const writable = new WritableDisk(image, { attachFile, policy: NO_COPYING });
      const job = new StreamJob(writable.disk, 2);
      while (!job.step());
      expect(job.done).toBe(SIZE);
      expect(counts.most).toBe(1);
      // Holes are not read, but for what is copied together with the data beside them.
      const isInHole = (at: number): boolean => at >= 12 * MIB && at < 16 * MIB;
      expect([...counts.pieces.keys()].filter(isInHole)).toEqual([]);
      const again = new StreamJob(writable.disk, 2);
      while (!again.step());
      expect(again.copied).toBe(0);
      expect(counts.most).toBe(1);
      drop(writable);
      writable.close();
      fs.truncateSync(join(image, "..", "base.raw"), 0);
      await expectClean(image, format);
      await expectDisk(image, format, expected);
    };
    await withOverlay(format, body, options);
  });

  it("lets all threads do without the backing file", async () => {
    const body = async ({ image, expected }: { image: string; expected: string }) => {
      const writable = new WritableDisk(image);
      const other = writable.asOtherThread();
      const bytes = fs.readFileSync(expected);
      // The other thread has copies that wait while the chain becomes shorter.
      expectBytes(writable.read(2 * MIB, MIB), bytes, 2 * MIB);
      const job = new StreamJob(other, 2);
      while (!job.step());
      const [top, base] = writable.chain.layers;
      if (top === undefined || base === undefined) throw new RangeError("no chain");
      other.dropBacking(() => setBackingFile(format, new LocalFile(top.file), undefined));
      expect([writable.disk.hasBacking(), other.hasBacking()]).toEqual([false, false]);
      fs.truncateSync(base.file.path, 0);
      expectBytes(writable.read(0, SIZE), bytes, 0);
      writable.write(12 * MIB + 17, Buffer.alloc(5000, 9));
      bytes.fill(9, 12 * MIB + 17, 12 * MIB + 5017);
      expectBytes(writable.read(11 * MIB, 2 * MIB), bytes, 11 * MIB);
      writable.close();
      fs.writeFileSync(expected, bytes);
      await expectClean(image, format);
      await expectDisk(image, format, expected);
    };
    await withOverlay(format, body, options);
  });
});

describe("letting go of a backing file", () => {
  it.each(["qcow2", "qed"] as const)("of %s comes after all is linked, and durable", (format) =>
    withOverlay(format, async ({ image, expected }) => {
      const calls: string[] = [];
      const attachFile: AttachFile = (file) => {
        const local = new LocalFile(file);
        if (file.path !== image) return local;
        const writeAt = local.writeAt.bind(local);
        local.writeAt = (source, start, length, offset) => {
          calls.push("write");
          writeAt(source, start, length, offset);
        };
        const sync = local.sync.bind(local);
        local.sync = () => {
          calls.push("sync");
          sync();
        };
        return local;
      };
      const writable = new WritableDisk(image, { attachFile });
      // What a reader has copied waits to be linked.
      writable.read(2 * MIB, MIB);
      const job = new StreamJob(writable.disk, 2);
      while (!job.step());
      const copy = `${image}.copy`;
      writable.disk.dropBacking(() => {
        expect(calls.at(-1)).toBe("sync");
        fs.copyFileSync(image, copy);
      });
      // The image at that moment, without its backing file.
      const file = LocalFile.open(copy, "read-write");
      setBackingFile(format, file, undefined);
      file.close();
      await expectDisk(copy, format, expected);
      writable.close();
    }),
  );
});

describe("a step of streaming", () => {
  it("copies a bounded part, also of one run", async () => {
    await withOverlay("qcow2", async ({ image }) => {
      const writable = new WritableDisk(image, { policy: NO_COPYING });
      const job = new StreamJob(writable.disk, 2);
      let steps = 0;
      for (let isDone = false; !isDone; steps++) {
        const before = job.copied;
        isDone = job.step();
        expect(job.copied - before).toBeLessThanOrEqual(4 * MIB);
      }
      expect(steps).toBeGreaterThanOrEqual(job.copied / (4 * MIB));
      // All data that is not there, and little of the hole.
      expect(job.copied).toBeGreaterThanOrEqual(16 * MIB - 5 * 65536);
      expect(job.copied).toBeLessThan(20 * MIB);
      writable.close();
    });
  });

  it("has nothing to do behind the end of a disk that has become shorter", async () => {
    await withOverlay("qcow2", async ({ image }) => {
      const writable = new WritableDisk(image, { policy: { ...NO_COPYING, growable: true } });
      const job = new StreamJob(writable.disk, 2);
      job.step();
      writable.disk.resize(9 * MIB + 512);
      expect(writable.disk.backingCopies.copy(9 * MIB + 512, MIB, 2)).toBe(MIB);
      expect(writable.disk.backingCopies.copy(20 * MIB, MIB, 2)).toBe(MIB);
      while (!job.step());
      expect([job.done, job.total]).toEqual([9 * MIB + 512, 9 * MIB + 512]);
      // What comes back is zeros, not what the backing file has there.
      writable.disk.resize(SIZE);
      drop(writable);
      expect(writable.read(9 * MIB + 512).every((byte) => byte === 0)).toBe(true);
      writable.close();
      await expectClean(image);
    });
  });

  it("that fails leaves what there is, and can be tried again", async () => {
    await withOverlay("qcow2", async ({ image, expected }) => {
      const counts = new ReadCounts();
      const writable = new WritableDisk(image, { ...counts, policy: NO_COPYING });
      const job = new StreamJob(writable.disk, 2);
      job.step();
      const { done } = job;
      counts.failing = true;
      expect(() => job.step()).toThrow(/base.raw: read failed/);
      expect(job.done).toBe(done);
      counts.failing = false;
      while (!job.step());
      // A header that cannot be changed leaves the chain as it is.
      expect(() =>
        writable.disk.dropBacking(() => {
          throw new StorageError("EIO", image, "no");
        }),
      ).toThrow(/: no/);
      expect(writable.disk.hasBacking()).toBe(true);
      drop(writable);
      writable.close();
      await expectClean(image);
      await expectDisk(image, "qcow2", expected);
    });
  });
});
