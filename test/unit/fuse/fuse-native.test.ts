// What stands between the tree and fuse-native: capacities in 32 bits, open files, and a package that is not there.

import { describe, expect, it } from "vitest";
import { explainLoadFailure } from "../../../src/fuse/native/fuse-native.ts";
import { OpenFiles } from "../../../src/fuse/native/open-files.ts";
import { statfsOf } from "../../../src/fuse/native/statfs.ts";

const KIB = 2 ** 10;
const TIB = 2 ** 40;

describe("capacities for fuse-native", () => {
  it.each([
    { blockSize: 64 * KIB, size: 8 * TIB, frsize: 64 * KIB, blocks: 2 ** 27 },
    { blockSize: 4 * KIB, size: 16 * TIB - 1, frsize: 8 * KIB, blocks: 2 ** 31 },
    { blockSize: 4 * KIB, size: 16 * TIB - 4 * KIB, frsize: 4 * KIB, blocks: 2 ** 32 - 1 },
    { blockSize: 4 * KIB, size: 16 * TIB, frsize: 8 * KIB, blocks: 2 ** 31 },
    { blockSize: 4 * KIB, size: 2 ** 53 - 1, frsize: 4096 * KIB, blocks: 2 ** 31 },
    { blockSize: 4 * KIB, size: 0, frsize: 4 * KIB, blocks: 0 },
  ])("count $size bytes in units that let the count fit", ({ blockSize, size, frsize, blocks }) => {
    expect(statfsOf({ blockSize, size })).toEqual({
      bsize: blockSize,
      frsize,
      blocks,
      namemax: 255,
    });
  });
});

describe("files that are open through fuse-native", () => {
  const file = (nodeid: number) => ({ nodeid, handle: 0, isSynchronous: false });

  it("have numbers from 1 on, which are not given again while they are open", () => {
    const files = new OpenFiles();
    expect([files.add(file(16)), files.add(file(20)), files.add(file(16))]).toEqual([1, 2, 3]);
    expect(files.get(2)).toEqual(file(20));
    expect(files.remove(2)).toEqual(file(20));
    expect(files.get(2)).toBeUndefined();
    expect(files.remove(2)).toBeUndefined();
    expect(files.add(file(24))).toBe(4);
  });
});

describe("a package fuse-native that cannot be loaded", () => {
  it.each([
    [
      "Cannot find module 'fuse-native'\nRequire stack:\n- /x/main.js",
      /not installed; npm install/,
    ],
    ["libfuse.so.2: cannot open shared object file: No such file or directory", /package libfuse2/],
    ["No native build was found for platform=linux arch=riscv64", /No native build was found/],
  ])("is explained in one line, with what to do: %s", (message, reason) => {
    const text = explainLoadFailure(new Error(message));
    expect(text).toMatch(reason);
    expect(text).toMatch(/do without the option$/);
    expect(text).not.toContain("\n");
  });
});
