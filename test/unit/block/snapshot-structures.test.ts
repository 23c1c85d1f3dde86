/** Changes of snapshots where structures get smaller, or cannot be read: what is left is the image that it is to be. */

import { describe, expect, it } from "vitest";
import type { SnapshotAction } from "../../../src/block/snapshots.ts";
import { StorageError } from "../../../src/errors.ts";
import type { SharedFile } from "../../../src/storage/local-file.ts";
import type { WritableStorage } from "../../../src/storage/storage.ts";
import type { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { createEncryptedImage, PASSPHRASE } from "../../support/encrypted-image.ts";
import { tolerate } from "../../support/failing-calls.ts";
import { createImage, qemuIo } from "../../support/qemu.ts";
import { run } from "../../support/run.ts";
import { byScale } from "../../support/scale.ts";
import { WrappedFile } from "../../support/wrapped-file.ts";
import { type DiskFiles, withDiskFiles } from "./writable-disk.ts";

const IMAGE = "image.qcow2";
const KIB = 1024;
const MIB = 1024 * KIB;

async function snapshot(files: DiskFiles, flag: string, name: string): Promise<void> {
  await run("qemu-img", ["snapshot", flag, name, files.path(IMAGE)]);
}

describe("a snapshot of a disk without bytes", () => {
  it("is applied: nothing of the disk before is left", async () => {
    await withDiskFiles(async (files) => {
      await createImage(files.path(IMAGE), "qcow2", { size: 0 });
      await snapshot(files, "-c", "empty");
      await run("qemu-img", ["resize", "-q", "-f", "qcow2", files.path(IMAGE), "1M"]);
      await qemuIo(files.path(IMAGE), "qcow2", ["write -q -P 1 0 1M"]);
      files.use(IMAGE, ({ disk }) => disk.changeSnapshots("apply", "empty"));
      await files.expectClean(IMAGE);
      expect(await files.converted(IMAGE)).toEqual(Buffer.alloc(0));
    });
  });

  it("is applied, and the disk grows and is written to in the same session", async () => {
    await withDiskFiles(async (files) => {
      await createImage(files.path(IMAGE), "qcow2", { size: 0 });
      await snapshot(files, "-c", "empty");
      await run("qemu-img", ["resize", "-q", "-f", "qcow2", files.path(IMAGE), "1M"]);
      await qemuIo(files.path(IMAGE), "qcow2", ["write -q -P 1 0 1M"]);
      files.use(IMAGE, (open) => {
        open.disk.changeSnapshots("apply", "empty");
        open.disk.resize(4 * MIB);
        expect(open.read().equals(Buffer.alloc(4 * MIB))).toBe(true);
        open.fill(64 * KIB, 3 * MIB, 2);
      });
      await files.expectClean(IMAGE);
      const expected = Buffer.alloc(4 * MIB).fill(2, 64 * KIB, 64 * KIB + 3 * MIB);
      expect((await files.converted(IMAGE)).equals(expected)).toBe(true);
    });
  });
});

describe("zeros that were written past the end of the disk that a snapshot brings back", () => {
  it("leave the clusters behind its shorter table alone", async () => {
    await withDiskFiles(async (files) => {
      const path = files.path(IMAGE);
      // Clusters of 512 bytes: an L1 table of 64 entries is one, and maps 2 MiB.
      const cluster = 512;
      await createImage(path, "qcow2", { size: MIB, options: { cluster_size: cluster } });
      await snapshot(files, "-c", "short");
      await run("qemu-img", ["resize", "-q", "-f", "qcow2", path, "4M"]);
      // What would be entries of an L1 table: of tables of their own, behind the end of the file.
      const data = Buffer.alloc(MIB);
      for (let at = 0; at < MIB; at += 8) data.writeBigUInt64BE(0x8000_0040_0000_0000n, at);
      files.use(IMAGE, (open) => open.write(0, data));
      await snapshot(files, "-c", "whole");
      files.use(IMAGE, ({ disk }) => {
        for (let at = 0; at < MIB; at += 2 * cluster)
          disk.writeZeroes(at, cluster, { unmap: true });
      });
      await snapshot(files, "-c", "half");
      // Between clusters of data, others are free: the table gets one of them.
      await snapshot(files, "-d", "whole");
      // Of a disk that may grow, the table is not kept in memory.
      const policy = { growable: true };
      files.use(
        IMAGE,
        (open) => {
          open.fill(3584 * KIB, cluster, 3);
          open.disk.writeZeroes(3584 * KIB, cluster, { unmap: true });
          open.disk.changeSnapshots("apply", "short");
        },
        { policy },
      );
      await files.expectClean(IMAGE);
      for (let at = 0; at < MIB; at += 2 * cluster) data.fill(0, at, at + cluster);
      await run("qemu-img", ["snapshot", "-a", "half", path]);
      expect((await files.converted(IMAGE)).subarray(0, MIB).equals(data)).toBe(true);
    });
  });
});

/** Offsets in the header and in an entry of the snapshot table, and what L1 entries have of an offset. */
const NB_SNAPSHOTS_AT = 60;
const SNAPSHOTS_OFFSET_AT = 64;
const L1_SIZE_AT = 36;
const L1_OFFSET_AT = 40;
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const CRYPTO_HEADER = Buffer.from("0537be7700000010", "hex");

const offsetAt = (bytes: Buffer, at: number): number =>
  Number(bytes.readBigUInt64BE(at) & OFFSET_MASK);

describe("the only reference of a snapshot that is damaged", () => {
  it("does not take the LUKS header away when the snapshot is deleted", async () => {
    await withDiskFiles(async (files) => {
      const encryption = ["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.key-secret=key"];
      await createEncryptedImage(files.path(IMAGE), encryption, "1M");
      const secrets = { secrets: [Buffer.from(PASSPHRASE)] };
      const fill = (value: number): void =>
        files.use(IMAGE, (open) => open.fill(0, 64 * KIB, value), secrets);
      fill(1);
      files.use(IMAGE, ({ disk }) => disk.changeSnapshots("create", "one"), secrets);
      fill(2);
      const bytes = files.bytes(IMAGE);
      const table = offsetAt(bytes, offsetAt(bytes, offsetAt(bytes, SNAPSHOTS_OFFSET_AT)));
      const place = bytes.indexOf(CRYPTO_HEADER) + CRYPTO_HEADER.length;
      bytes.copy(bytes, table, place, place + 8);
      files.put(IMAGE, bytes);
      const remove = (): void =>
        files.use(IMAGE, ({ disk }) => disk.changeSnapshots("delete", "one"), secrets);
      expect(remove).toThrow(/would be freed, and is metadata/);
      files.use(
        IMAGE,
        (open) => {
          expect(open.read(0, 64 * KIB).equals(Buffer.alloc(64 * KIB, 2))).toBe(true);
        },
        secrets,
      );
    });
  });
});

describe("snapshots of an image with an external data file, which there cannot be", () => {
  it.each(["apply", "delete"] as const)("%s: is refused", async (action) => {
    await withDiskFiles(async (files) => {
      const options = { data_file: files.path("data.raw") };
      await createImage(files.path(IMAGE), "qcow2", { size: MIB, options });
      await qemuIo(files.path(IMAGE), "qcow2", ["write -q -P 1 0 1M"]);
      const bytes = files.bytes(IMAGE);
      const start = Math.ceil(bytes.length / (64 * KIB)) * 64 * KIB;
      const entry = Buffer.alloc(64);
      bytes.copy(entry, 0, L1_OFFSET_AT, L1_OFFSET_AT + 8);
      bytes.copy(entry, 8, L1_SIZE_AT, L1_SIZE_AT + 4);
      entry.writeUInt16BE(1, 12);
      entry.writeUInt16BE(3, 14);
      entry.writeUInt32BE(16, 36);
      entry.writeBigUInt64BE(BigInt(MIB), 48);
      entry.write("1one", 56);
      bytes.writeUInt32BE(1, NB_SNAPSHOTS_AT);
      bytes.writeBigUInt64BE(BigInt(start), SNAPSHOTS_OFFSET_AT);
      const image = Buffer.concat([bytes, Buffer.alloc(start - bytes.length), entry]);
      files.put(IMAGE, image);
      const change = (): void =>
        files.use(IMAGE, ({ disk }) => disk.changeSnapshots(action, "one"));
      expect(change).toThrow(expect.objectContaining({ name: "UnsupportedError" }));
      expect(files.bytes(IMAGE).equals(image)).toBe(true);
    });
  });
});

/** A file of which one read fails: counted from 0, once they are counted. */
class UnreadableFile extends WrappedFile {
  /** Reads so far; undefined: they are not counted. */
  reads: number | undefined;
  failing = Number.POSITIVE_INFINITY;

  override readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    if (this.reads !== undefined && this.reads++ === this.failing) {
      throw new StorageError("EIO", this.path, "read failed");
    }
    super.readAt(target, start, length, offset);
  }

  writeAt(source: NativeBuffer, start: number, length: number, offset: number): void {
    this.file.writeAt(source, start, length, offset);
  }

  zeroAt(offset: number, length: number, space: "release" | "keep"): void {
    this.file.zeroAt(offset, length, space);
  }

  preallocate(offset: number, length: number): void {
    this.file.preallocate(offset, length);
  }

  setLength(length: number): void {
    this.file.setLength(length);
  }

  sync(): void {
    this.file.sync();
  }
}

/** A session in which a snapshot changes, and which goes on whatever comes of it. */
function changeAndGoOn(
  files: DiskFiles,
  [action, name]: readonly [SnapshotAction, string],
  failing: number,
): { readonly reads: number; readonly error: unknown } {
  let file: UnreadableFile | undefined;
  const attachFile = (shared: SharedFile): WritableStorage => {
    file = new UnreadableFile(shared);
    return file;
  };
  const open = files.open(IMAGE, { attachFile });
  try {
    if (file === undefined) expect.fail("no file");
    file.failing = failing;
    file.reads = 0;
    const error = tolerate(() => open.disk.changeSnapshots(action, name));
    const { reads } = file;
    file.reads = undefined;
    open.fill(...GOING_ON);
    return { reads, error };
  } finally {
    open.close();
  }
}

const GOING_ON = [700 * KIB, 200 * KIB, 3] as const;

const CHANGES: readonly (readonly [SnapshotAction, string])[] = [
  ["create", "new"],
  ["apply", "first"],
  ["delete", "first"],
];

describe("a read that fails while a snapshot changes", () => {
  it.each(CHANGES)("%s: the image is what it was, or what it is to be", async (action, name) => {
    await withDiskFiles(async (files) => {
      await createImage(files.path(IMAGE), "qcow2", { size: MIB, options: { cluster_size: 4096 } });
      await qemuIo(files.path(IMAGE), "qcow2", ["write -q -P 1 0 600k"]);
      await snapshot(files, "-c", "first");
      await qemuIo(files.path(IMAGE), "qcow2", ["write -q -P 2 300k 600k"]);
      const intact = files.bytes(IMAGE);
      const [start, length, value] = GOING_ON;
      const first = Buffer.alloc(MIB).fill(1, 0, 600 * KIB);
      const now = Buffer.from(first).fill(2, 300 * KIB, 900 * KIB);
      const [before, after] = [now, action === "apply" ? first : now].map((disk) =>
        Buffer.from(disk).fill(value, start, start + length),
      );
      const { reads } = changeAndGoOn(files, [action, name], Number.POSITIVE_INFINITY);
      for (let failing = byScale(reads - 4, 0); failing < reads; failing++) {
        files.put(IMAGE, intact);
        const { error } = changeAndGoOn(files, [action, name], failing);
        const { corruptions } = await files.check(IMAGE);
        expect(corruptions, `read ${failing}`).toBe(0);
        const disk = await files.converted(IMAGE);
        const isBefore = before?.equals(disk) === true;
        const isAfter = after?.equals(disk) === true;
        expect(error === undefined ? isAfter : isBefore, `read ${failing}: the disk`).toBe(true);
      }
    });
  });
});
