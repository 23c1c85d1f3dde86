/** What another thread does to a disk while data for new clusters is being written: it is not kept out. */

import { describe, expect, it } from "vitest";
import type { Disk } from "../../../src/block/disk.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { FaultyFiles } from "../../support/faulty-files.ts";
import { createImage } from "../../support/qemu.ts";
import { run } from "../../support/run.ts";
import { expectBytes } from "../expect-bytes.ts";
import { readDisk, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const MIB = 2 ** 20;
const SIZE = 16 * MIB;
const FORMATS = ["qcow2", "qed"] as const;
/** Of src/threads/access-lock.ts: the first thread shares the lock. Asked first, or a mistake would hang here. */
const SHARES_WORD = 16;

/** An image with a MiB of 0x11; `meanwhile` is called when the data of another MiB is being written. */
async function withWrite(
  format: (typeof FORMATS)[number],
  write: (disk: WritableDisk) => void,
  meanwhile: (other: Disk) => void,
): Promise<Buffer> {
  return await withDiskFiles(async (files) => {
    const name = `disk.${format}`;
    await createImage(files.path(name), format, { size: SIZE });
    await run("qemu-io", ["-f", format, "-c", `write -P 0x11 0 ${MIB}`, files.path(name)]);
    const faulty = new FaultyFiles();
    const disk = files.open(name, { attachFile: faulty.attach });
    try {
      const other = disk.asOtherThread();
      const lock = disk.chain.writing?.lock;
      let times = 0;
      faulty.faults = ({ kind, length }) => {
        if (kind !== "write" || length !== MIB || times > 0) return "works";
        times++;
        expect(lock && Atomics.load(new Int32Array(lock), SHARES_WORD)).toBe(0);
        meanwhile(other);
        return "works";
      };
      write(disk);
      expect(times).toBe(1);
    } finally {
      disk.close();
    }
    if (format === "qcow2") await files.expectClean(name);
    else await files.check(name);
    return await files.converted(name);
  });
}

function expected(...parts: readonly (readonly [from: number, to: number, value: number])[]) {
  const bytes = Buffer.alloc(SIZE);
  for (const [from, to, value] of parts) bytes.fill(value, from, to);
  return bytes;
}

describe.each(FORMATS)("while %s data for new clusters is written", (format) => {
  it("others read, write in place and zero", async () => {
    const content = await withWrite(
      format,
      (disk) => disk.fill(4 * MIB, MIB, 0x22),
      (other) => {
        expectBytes(readDisk(other, 0, MIB), Buffer.alloc(MIB, 0x11));
        expectBytes(readDisk(other, 4 * MIB, MIB), Buffer.alloc(MIB));
        other.writeZeroes(0, MIB / 2, { unmap: true });
        const source = NativeBuffer.allocate(4096);
        source.bytes.fill(0x33);
        other.write(MIB - 4096, 4096, source, 0);
        expectBytes(readDisk(other, 0, MIB / 2), Buffer.alloc(MIB / 2));
      },
    );
    expectBytes(
      content,
      expected([MIB / 2, MIB, 0x11], [MIB - 4096, MIB, 0x33], [4 * MIB, 5 * MIB, 0x22]),
    );
  });

  it("others see what was there before, and it comes after what they did first", async () => {
    const content = await withWrite(
      format,
      (disk) => disk.fill(4 * MIB, MIB, 0x22),
      (other) => {
        other.flush();
        other.maintain();
        expectBytes(readDisk(other, 3 * MIB, 3 * MIB), Buffer.alloc(3 * MIB));
      },
    );
    expectBytes(content, expected([0, MIB, 0x11], [4 * MIB, 5 * MIB, 0x22]));
  });
});
