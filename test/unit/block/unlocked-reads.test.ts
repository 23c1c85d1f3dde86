/** What another thread does to a disk while a read waits for the medium: it is not kept out, and the read is right. */

import { describe, expect, it } from "vitest";
import type { Disk } from "../../../src/block/disk.ts";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { createImage } from "../../support/qemu.ts";
import { run } from "../../support/run.ts";
import { type DiskFiles, readDisk, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const MIB = 2 ** 20;
const SIZE = 64 * MIB;
const CLUSTER = 65536;
const OLD = 0x11;
const NEW = 0x22;
const OTHER = 0x33;

/** Does something in another thread's place during the next read of a file that gives up the lock. */
class Meanwhile {
  #action: ((other: Disk) => void) | undefined;
  #other: Disk | undefined;
  happened = 0;

  open(files: DiskFiles, name: string): WritableDisk {
    const disk = files.open(name, {
      policy: { detectZeroes: "off" },
      attachFile: (file, unlocked) =>
        new LocalFile(file, {
          interlude: {
            get isOn() {
              return unlocked?.isOn ?? false;
            },
            before: () => {
              unlocked?.before();
              this.#run();
            },
            after: () => unlocked?.after(),
          },
        }),
    });
    this.#other = disk.asOtherThread();
    return disk;
  }

  during(action: (other: Disk) => void): void {
    this.#action = action;
  }

  #run(): void {
    const action = this.#action;
    this.#action = undefined;
    if (action === undefined || this.#other === undefined) return;
    action(this.#other);
    this.happened++;
  }
}

function fill(disk: Disk, offset: number, length: number, value: number): void {
  const source = NativeBuffer.allocate(length);
  source.bytes.fill(value);
  disk.write(offset, length, source, 0);
}

/** An image with a MiB of old bytes at its start, opened with nothing cached. */
async function withOldDisk(
  body: (disk: WritableDisk, meanwhile: Meanwhile) => void,
  prepare: (path: string) => Promise<void> = async () => {},
): Promise<void> {
  await withDiskFiles(async (files) => {
    const path = files.path("disk.qcow2");
    await createImage(path, "qcow2", { size: SIZE });
    await run("qemu-io", ["-f", "qcow2", "-c", `write -P ${OLD} 0 ${MIB}`, path]);
    await prepare(path);
    const meanwhile = new Meanwhile();
    const disk = meanwhile.open(files, "disk.qcow2");
    try {
      body(disk, meanwhile);
      expect(meanwhile.happened).toBe(1);
    } finally {
      disk.close();
    }
    await files.expectClean("disk.qcow2");
  });
}

/** The one value of all bytes. */
function soleValue(bytes: Buffer): number | undefined {
  const [first] = bytes;
  return bytes.every((byte) => byte === first) ? first : undefined;
}

describe("a read that waits for the medium", () => {
  it("keeps nobody from allocating, and reads what was there", async () => {
    await withOldDisk((disk, meanwhile) => {
      readDisk(disk.disk, 0, 512);
      meanwhile.during((other) => fill(other, 8 * MIB, MIB, NEW));
      expect(soleValue(readDisk(disk.disk, 0, MIB))).toBe(OLD);
      expect(soleValue(readDisk(disk.disk, 8 * MIB, MIB))).toBe(NEW);
    });
  });

  it("never sees what another one has written to the place, freed meanwhile", async () => {
    await withOldDisk((disk, meanwhile) => {
      readDisk(disk.disk, 0, 512);
      meanwhile.during((other) => {
        other.writeZeroes(0, MIB, { unmap: true });
        other.flush();
        other.maintain();
        // More than is reserved at first: the places come to be used again.
        for (let at = 2; at < 40; at++) fill(other, at * MIB, MIB, OTHER);
      });
      expect([OLD, 0]).toContain(soleValue(readDisk(disk.disk, 0, MIB)));
      expect(soleValue(readDisk(disk.disk, 0, MIB))).toBe(0);
    });
  });

  it("sees a change of the table that it was reading, at the latest the next time", async () => {
    await withOldDisk((disk, meanwhile) => {
      meanwhile.during((other) => {
        fill(other, 4 * MIB, CLUSTER, NEW);
        fill(other, 0, CLUSTER, NEW);
      });
      expect([OLD, NEW]).toContain(soleValue(readDisk(disk.disk, 0, CLUSTER)));
      expect(soleValue(readDisk(disk.disk, 0, CLUSTER))).toBe(NEW);
      expect(soleValue(readDisk(disk.disk, 4 * MIB, CLUSTER))).toBe(NEW);
    });
  });

  it("does not see the place of a deleted snapshot", async () => {
    await withOldDisk(
      (disk, meanwhile) => {
        readDisk(disk.disk, 0, 512);
        meanwhile.during((other) => {
          fill(other, 0, MIB, NEW);
          other.changeSnapshots("delete", "before");
          other.flush();
          other.maintain();
        });
        expect([OLD, NEW]).toContain(soleValue(readDisk(disk.disk, 0, MIB)));
        expect(soleValue(readDisk(disk.disk, 0, MIB))).toBe(NEW);
      },
      async (path) => {
        await run("qemu-img", ["snapshot", "-c", "before", path]);
      },
    );
  });

  it("is a read of a table for a write, too: what was freed meanwhile is not written to", async () => {
    await withOldDisk((disk, meanwhile) => {
      meanwhile.during((other) => {
        other.writeZeroes(0, MIB, { unmap: true });
        other.flush();
        other.maintain();
        for (let at = 2; at < 40; at++) fill(other, at * MIB, MIB, OTHER);
      });
      disk.fill(0, CLUSTER, NEW);
      expect(soleValue(readDisk(disk.disk, 0, CLUSTER))).toBe(NEW);
      for (let at = 2; at < 40; at++) {
        expect(soleValue(readDisk(disk.disk, at * MIB, MIB))).toBe(OTHER);
      }
    });
  });
});
