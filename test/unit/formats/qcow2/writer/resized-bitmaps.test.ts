/** Disabled bitmaps of a disk that changes its size: they are read into memory, which has a limit. */

import { describe, expect, it } from "vitest";
import { createImage } from "../../../../support/qemu.ts";
import { run } from "../../../../support/run.ts";
import { withDiskFiles } from "../../../block/writable-disk.ts";

const IMAGE = "image.qcow2";
const SIZE = 2 ** 20;
const TIB = 2 ** 40;

describe("a disk with a disabled bitmap of fine granularity", () => {
  it("does not become larger than there is memory for", async () => {
    await withDiskFiles(async (files) => {
      const path = files.path(IMAGE);
      await createImage(path, "qcow2", { size: SIZE });
      await run("qemu-img", ["bitmap", "--add", "--disable", "-g", "512", path, "fine"]);
      files.use(IMAGE, ({ disk }) => {
        const error = { name: "TsimgfsError", code: "EFBIG" };
        expect(() => disk.resize(64 * TIB)).toThrow(expect.objectContaining(error));
        expect(disk.currentSize()).toBe(SIZE);
        disk.resize(2 * SIZE);
      });
      await files.expectClean(IMAGE);
    });
  });
});
