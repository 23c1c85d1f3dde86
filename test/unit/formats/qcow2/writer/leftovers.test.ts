/** Opening images that a writer left behind: what their refcount table wrongly refers to is not written to. */

import fs from "node:fs";
import { describe, expect, it } from "vitest";
import { CorruptionError } from "../../../../../src/errors.ts";
import { createImage, qemuIo } from "../../../../support/qemu.ts";
import { type DiskFiles, withDiskFiles } from "../../../block/writable-disk.ts";

const IMAGE = "image.qcow2";
const SIZE = 2 ** 20;
const L1_TABLE_OFFSET_AT = 40;
const REFCOUNT_TABLE_OFFSET_AT = 48;
const INCOMPATIBLE_FEATURES_END = 80;
const ENTRY_SIZE = 8;
const L1_OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const DIRTY = 1;

/** Lets the second entry of the refcount table, for clusters far behind the file, refer to the first L2 table. */
function damage(files: DiskFiles): void {
  const bytes = files.bytes(IMAGE);
  const l1 = Number(bytes.readBigUInt64BE(L1_TABLE_OFFSET_AT));
  const l2 = bytes.readBigUInt64BE(l1) & L1_OFFSET_MASK;
  const table = Number(bytes.readBigUInt64BE(REFCOUNT_TABLE_OFFSET_AT));
  bytes.writeBigUInt64BE(l2, table + ENTRY_SIZE);
  files.put(IMAGE, bytes);
}

function setDirty(files: DiskFiles): void {
  const fd = fs.openSync(files.path(IMAGE), "r+");
  fs.writeSync(fd, Uint8Array.of(DIRTY), 0, 1, INCOMPATIBLE_FEATURES_END - 1);
  fs.closeSync(fd);
}

describe("an image whose refcount table refers to an L2 table", () => {
  it.each([
    ["1.1", "which is dirty"],
    ["0.10", "which cannot be dirty"],
  ])("keeps its disk when it is opened for writing: compat %s, %s", async (compat) => {
    await withDiskFiles(async (files) => {
      await createImage(files.path(IMAGE), "qcow2", { size: SIZE, options: { compat } });
      await qemuIo(files.path(IMAGE), "qcow2", ["write -q -P 7 0 1M"]);
      damage(files);
      if (compat === "1.1") setDirty(files);
      try {
        files.use(IMAGE, (open) => expect(open.read().equals(Buffer.alloc(SIZE, 7))).toBe(true));
      } catch (error) {
        // What it is not marked for is not repaired in passing: it is only read.
        expect([compat, error]).toEqual(["0.10", expect.any(CorruptionError)]);
      }
      expect((await files.converted(IMAGE)).equals(Buffer.alloc(SIZE, 7))).toBe(true);
    });
  });
});
