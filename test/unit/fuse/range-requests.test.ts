/** FALLOCATE and SETATTR on hand-laid bytes; what they did is read back by qemu-img. */

import { constants } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { OPCODE } from "../../support/fuse-opcodes.ts";
import { run } from "../../support/run.ts";
import { expectBytes } from "../expect-bytes.ts";
import {
  type Caller,
  fallocateArguments,
  readArguments,
  setattrArguments,
  writeArguments,
} from "./call.ts";
import {
  CLUSTER,
  DEVICE,
  FATTR,
  GROWABLE,
  ROOT,
  SIZE,
  STATS,
  sizeOf,
  sizeOfReply,
  withDevice,
  withReadOnlyDevice,
} from "./writable-device.ts";

const { EBADF, EISDIR, ENOSPC, EOPNOTSUPP, EPERM, EROFS, ESTALE } = constants.errno;

/** Modes of fallocate(2). */
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const COLLAPSE_RANGE = 8;
const ZERO_RANGE = 16;

describe("FALLOCATE", () => {
  const fill = (caller: Caller): void => {
    const data = Buffer.alloc(SIZE, 0x77);
    for (let at = 0; at < SIZE; at += 32768) {
      const part = data.subarray(at, at + 32768);
      caller.call(OPCODE.write, DEVICE, writeArguments(at, part));
    }
  };
  const fallocate = (
    caller: Caller,
    offset: number | bigint,
    length: number | bigint,
    mode: number,
  ): number =>
    caller.call(OPCODE.fallocate, DEVICE, fallocateArguments(offset, length, mode)).result;

  it.each([
    { mode: PUNCH_HOLE | KEEP_SIZE, offset: 0, length: 1 },
    { mode: PUNCH_HOLE | KEEP_SIZE, offset: 100, length: 3 * CLUSTER },
    { mode: PUNCH_HOLE | KEEP_SIZE, offset: CLUSTER, length: CLUSTER },
    { mode: PUNCH_HOLE | KEEP_SIZE, offset: SIZE - 512, length: 512 },
    { mode: PUNCH_HOLE | KEEP_SIZE, offset: SIZE - 1, length: 2 ** 40 },
    { mode: PUNCH_HOLE | KEEP_SIZE, offset: 5, length: 2n ** 63n - 6n },
    { mode: PUNCH_HOLE | KEEP_SIZE, offset: SIZE, length: 1 },
    { mode: PUNCH_HOLE | KEEP_SIZE, offset: 2n ** 62n, length: 10 },
    { mode: ZERO_RANGE | KEEP_SIZE, offset: 100, length: 3 * CLUSTER },
    { mode: ZERO_RANGE | KEEP_SIZE, offset: SIZE - 10, length: 100 },
    { mode: ZERO_RANGE, offset: 2 * CLUSTER, length: 1 },
    { mode: ZERO_RANGE, offset: SIZE - 700, length: 700 },
  ])("mode $mode zeroes $length bytes at $offset", async ({ mode, offset, length }) => {
    await withDevice(async ({ caller, converted }) => {
      fill(caller);
      expect(fallocate(caller, offset, length, mode)).toBe(0);
      expect(sizeOf(caller)).toBe(SIZE);
      const expected = Buffer.alloc(SIZE, 0x77);
      const start = Math.min(Number(offset), SIZE);
      expected.fill(0, start, Math.min(SIZE, start + Number(length)));
      expectBytes(await converted(), expected);
    });
  });

  it.each([
    { offset: 0, length: 1 },
    { offset: CLUSTER - 1, length: 2 },
    { offset: SIZE - 1, length: 1 },
  ])("mode 0 allocates $length bytes at $offset, which stay zeros", async ({ offset, length }) => {
    await withDevice(async ({ caller, directory, converted }) => {
      expect(fallocate(caller, offset, length, 0)).toBe(0);
      const zeros = caller.call(OPCODE.read, DEVICE, readArguments(0, SIZE)).payload;
      expectBytes(zeros, Buffer.alloc(SIZE));
      expectBytes(await converted(), Buffer.alloc(SIZE));
      const path = join(directory, "disk.qcow2");
      const { stdout } = await run("qemu-img", ["check", "-U", "--output=json", path]);
      const clusters =
        Math.floor((offset + length - 1) / CLUSTER) - Math.floor(offset / CLUSTER) + 1;
      expect(JSON.parse(stdout)).toMatchObject({ "allocated-clusters": clusters });
    });
  });

  it("keeps what is there in mode 0", async () => {
    await withDevice(async ({ caller, converted }) => {
      caller.call(OPCODE.write, DEVICE, writeArguments(CLUSTER, Buffer.alloc(10, 9)));
      expect(fallocate(caller, 0, SIZE, 0)).toBe(0);
      const expected = Buffer.alloc(SIZE);
      expected.fill(9, CLUSTER, CLUSTER + 10);
      expectBytes(await converted(), expected);
    });
  });

  it.each([
    { mode: 0, offset: SIZE - 1, length: 2 },
    { mode: 0, offset: SIZE, length: 1 },
    { mode: 0, offset: 0, length: 2n ** 62n },
    { mode: KEEP_SIZE, offset: SIZE, length: 1 },
    { mode: ZERO_RANGE, offset: SIZE - 1, length: 2 },
    { mode: ZERO_RANGE, offset: SIZE + 5, length: 2 },
  ])("mode $mode finds no space for $length bytes at $offset", async ({ mode, offset, length }) => {
    await withDevice(async ({ caller, converted }) => {
      fill(caller);
      expect(fallocate(caller, offset, length, mode)).toBe(-ENOSPC);
      expect(sizeOf(caller)).toBe(SIZE);
      expectBytes(await converted(), Buffer.alloc(SIZE, 0x77));
    });
  });

  it.each([0, ZERO_RANGE])("mode %i makes a growable device larger", async (mode) => {
    await withDevice(async ({ caller, converted }) => {
      expect(fallocate(caller, SIZE + 100, 1000, mode)).toBe(0);
      const grown = Math.ceil((SIZE + 1100) / 512) * 512;
      expect(sizeOf(caller)).toBe(grown);
      expectBytes(await converted(), Buffer.alloc(grown));
    }, GROWABLE);
  });

  it.each([{ mode: PUNCH_HOLE | KEEP_SIZE }, { mode: ZERO_RANGE | KEEP_SIZE }])(
    "mode $mode leaves the size of a growable device",
    async ({ mode }) => {
      await withDevice(({ caller }) => {
        expect(fallocate(caller, SIZE - 100, 1000, mode)).toBe(0);
        expect(fallocate(caller, SIZE + 100, 1000, mode)).toBe(0);
        expect(sizeOf(caller)).toBe(SIZE);
      }, GROWABLE);
    },
  );

  it.each([COLLAPSE_RANGE, 0x20, 0x40, PUNCH_HOLE | ZERO_RANGE, 0x8000_0000])(
    "knows no mode %i",
    async (mode) => {
      await withDevice(({ caller }) => {
        expect(fallocate(caller, 0, CLUSTER, mode)).toBe(-EOPNOTSUPP);
      });
    },
  );

  it("is for devices that are open for writing", async () => {
    const args = fallocateArguments(0, CLUSTER, PUNCH_HOLE | KEEP_SIZE);
    await withReadOnlyDevice((caller) => {
      expect(caller.call(OPCODE.fallocate, DEVICE, args).result).toBe(-EBADF);
    });
    await withDevice(({ caller }) => {
      expect(caller.call(OPCODE.fallocate, ROOT, args).result).toBe(-EISDIR);
      expect(caller.call(OPCODE.fallocate, STATS, args).result).toBe(-EBADF);
      expect(caller.call(OPCODE.fallocate, 999, args).result).toBe(-ESTALE);
    });
  });
});

describe("SETATTR", () => {
  it("takes times without a word, and the size that there is", async () => {
    await withDevice(({ caller }) => {
      for (const valid of [0, FATTR.atime, FATTR.mtime, FATTR.atime | FATTR.fh]) {
        const { payload } = caller.call(OPCODE.setattr, DEVICE, setattrArguments(valid));
        expect(sizeOfReply(payload)).toBe(SIZE);
      }
      const args = setattrArguments(FATTR.size | FATTR.mtime, SIZE);
      expect(sizeOfReply(caller.call(OPCODE.setattr, DEVICE, args).payload)).toBe(SIZE);
    });
  });

  it.each([0, 1, SIZE - 1, SIZE + 1, SIZE + 512, 2n ** 63n - 1n])(
    "refuses the size %s for a device that is not growable",
    async (size) => {
      await withDevice(({ caller }) => {
        const args = setattrArguments(FATTR.size, size);
        expect(caller.call(OPCODE.setattr, DEVICE, args).result).toBe(-EPERM);
        expect(sizeOf(caller)).toBe(SIZE);
      });
    },
  );

  it.each([
    { size: 0, rounded: 0 },
    { size: 1, rounded: 512 },
    { size: SIZE - 512, rounded: SIZE - 512 },
    { size: SIZE + 1, rounded: SIZE + 512 },
    { size: 40 * CLUSTER, rounded: 40 * CLUSTER },
  ])("changes a growable device to $size, in whole sectors", async ({ size, rounded }) => {
    await withDevice(async ({ caller, converted }) => {
      const args = writeArguments(0, Buffer.alloc(CLUSTER, 5));
      caller.call(OPCODE.write, DEVICE, args);
      const answer = caller.call(OPCODE.setattr, DEVICE, setattrArguments(FATTR.size, size));
      expect(sizeOfReply(answer.payload)).toBe(rounded);
      const expected = Buffer.alloc(rounded);
      expected.fill(5, 0, Math.min(CLUSTER, rounded));
      expectBytes(await converted(), expected);
    }, GROWABLE);
  });

  it.each([FATTR.mode, FATTR.uid, FATTR.gid, FATTR.mode | FATTR.size])(
    "refuses to change owners and permissions (valid %i)",
    async (valid) => {
      await withDevice(({ caller }) => {
        const args = setattrArguments(valid, SIZE);
        expect(caller.call(OPCODE.setattr, DEVICE, args).result).toBe(-EPERM);
      });
    },
  );

  it("of a size is for devices that are open for writing", async () => {
    const args = setattrArguments(FATTR.size, SIZE);
    await withReadOnlyDevice((caller) => {
      expect(caller.call(OPCODE.setattr, DEVICE, args).result).toBe(-EROFS);
    });
    await withDevice(({ caller }) => {
      expect(caller.call(OPCODE.setattr, ROOT, args).result).toBe(-EISDIR);
      expect(caller.call(OPCODE.setattr, STATS, args).result).toBe(-EROFS);
      expect(caller.call(OPCODE.setattr, 999, args).result).toBe(-ESTALE);
    });
  });
});
