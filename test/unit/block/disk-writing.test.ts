/** Writing to disks of all kinds: any offset and length, read back by us and by qemu-img. */

import fs from "node:fs";
import { describe, expect, it } from "vitest";
import { StorageError } from "../../../src/errors.ts";
import { LocalFile, type SharedFile } from "../../../src/storage/local-file.ts";
import { createImage } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { expectBytes } from "../expect-bytes.ts";
import { DISK_KINDS, type DiskKind, putDisk } from "./disk-kinds.ts";
import { type DiskFiles, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

/** Calls `body` with the disk and with what it must contain, and compares both, twice. */
async function withModel(
  kind: DiskKind,
  body: (disk: WritableDisk, model: Buffer, files: DiskFiles) => void,
): Promise<void> {
  await withDiskFiles(async (files) => {
    const model = putDisk(files, kind);
    const before = kind.backingSize === undefined ? undefined : files.bytes("base.raw");
    files.use(kind.file, (disk) => {
      expectBytes(disk.read(), model, "before");
      body(disk, model, files);
      expectBytes(disk.read(), model, "now");
    });
    if (kind.file !== "disk.raw") await files.expectClean(kind.file);
    expectBytes(await files.converted(kind.file), model, "afterwards");
    if (before !== undefined) expectBytes(files.bytes("base.raw"), before, "the backing file");
  });
}

/** Changes a range in one way or another, which the model does too. */
function changeBoth(
  disk: WritableDisk,
  model: Buffer,
  { offset, length, random }: { offset: number; length: number; random: Random },
): void {
  switch (random.pick(["data", "data", "zeros", "zeros", "punch", "zero", "preallocate"])) {
    case "data": {
      const bytes = random.bytes(length);
      disk.write(offset, bytes);
      bytes.copy(model, offset);
      return;
    }
    case "zeros":
      disk.fill(offset, length, 0);
      break;
    case "punch":
      disk.disk.writeZeroes(offset, length, { unmap: true });
      break;
    case "zero":
      disk.disk.writeZeroes(offset, length, { unmap: false });
      break;
    default:
      disk.disk.preallocate(offset, length);
      return;
  }
  model.fill(0, offset, offset + length);
}

describe.each(DISK_KINDS)("a disk with $name", (kind) => {
  const { clusterSize, virtualSize } = kind;
  const edges = [
    0,
    1,
    clusterSize - 1,
    clusterSize,
    clusterSize + 1,
    3 * clusterSize - 7,
    64 * 512,
    Math.floor(virtualSize / 2),
    virtualSize - 513,
    virtualSize - 512,
    virtualSize - 1,
  ].filter((offset) => offset < virtualSize);

  it("takes one byte at each edge", async () => {
    await withModel(kind, (disk, model) => {
      for (const offset of edges) {
        disk.fill(offset, 1, 0xa5);
        model[offset] = 0xa5;
        expectBytes(disk.read(), model, `byte ${offset}`);
      }
    });
  });

  it("takes a write from each edge to each other one", async () => {
    const random = new Random(`edges ${kind.name}`);
    await withModel(kind, (disk, model) => {
      for (const start of edges) {
        for (const end of edges.filter((edge) => edge > start)) {
          const bytes = random.bytes(end - start);
          disk.write(start, bytes);
          bytes.copy(model, start);
        }
        expectBytes(disk.read(), model, `from ${start} on`);
      }
    });
  });

  it("takes the whole disk in one write, and again", async () => {
    const random = new Random(`whole ${kind.name}`);
    await withModel(kind, (disk, model) => {
      for (let round = 0; round < 2; round++) {
        const bytes = random.bytes(virtualSize);
        disk.write(0, bytes);
        bytes.copy(model);
      }
    });
  });

  it("does nothing for a write of nothing", async () => {
    await withModel(kind, (disk) => {
      for (const offset of [0, 1, virtualSize]) disk.write(offset, Buffer.alloc(0));
    });
  });

  it("takes zeros and data in any order", async () => {
    const random = new Random(`mixed ${kind.name}`);
    await withModel(kind, (disk, model) => {
      for (let step = 0; step < 60; step++) {
        const offset = random.below(virtualSize);
        const length = Math.min(
          random.between(1, random.pick([600, clusterSize * 3, 60_000])),
          virtualSize - offset,
        );
        changeBoth(disk, model, { offset, length, random });
        if (random.below(10) === 0) disk.disk.flush();
        if (random.below(10) === 0) disk.disk.maintain();
        expectBytes(disk.read(offset, length), model.subarray(offset, offset + length));
      }
    });
  });

  it("keeps what was acknowledged when the program is killed", async () => {
    await withDiskFiles(async (files) => {
      const model = putDisk(files, kind);
      const killed = files.open(kind.file);
      const bytes = new Random(`killed ${kind.name}`).bytes(3 * clusterSize + 9);
      killed.write(clusterSize - 5, bytes);
      bytes.copy(model, clusterSize - 5);
      killed.disk.writeZeroes(5 * clusterSize + 1, clusterSize * 2, { unmap: true });
      model.fill(0, 5 * clusterSize + 1, 7 * clusterSize + 1);
      killed.abandon();
      if (kind.file !== "disk.raw") await files.check(kind.file);
      expectBytes(await files.converted(kind.file), model, "after the kill");
      files.use(kind.file, (again) => expectBytes(again.read(), model, "opened again"));
      if (kind.file !== "disk.raw") await files.expectClean(kind.file);
      expectBytes(await files.converted(kind.file), model, "afterwards");
    });
  });
});

/** Of a host that keeps files as long as they are. */
class UncutFile extends LocalFile {
  override setLength(length: number): void {
    if (length < this.currentLength()) throw new StorageError("EPERM", this.path, "is not cut");
    super.setLength(length);
  }
}

describe("an image whose host does not cut files", () => {
  it.each([
    ["fixed.qcow2", "qcow2", 72],
    ["fixed.qed", "qed", 16],
  ] as const)("is closed in order all the same: %s", async (name, format, features) => {
    await withDiskFiles(async (files) => {
      await createImage(files.path(name), format, { size: 2 ** 20 });
      fs.truncateSync(files.path(name), 2 ** 22);
      const attachFile = (file: SharedFile): LocalFile => new UncutFile(file);
      const disk = files.use(
        name,
        (writable) => {
          writable.fill(100_000, 70_000, 5);
          return writable.read();
        },
        { attachFile },
      );
      const bytes = files.bytes(name);
      expect(bytes.length).toBeGreaterThanOrEqual(2 ** 22);
      expect(bytes.subarray(features, features + 8)).toEqual(Buffer.alloc(8));
      expectBytes(await files.converted(name), disk);
    });
  });
});
