/** WRITE, FALLOCATE, SETATTR and FSYNC on hand-laid bytes; what they did is read back by qemu-img. */

import fs from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import type { WritePolicy } from "../../../src/block/write-policy.ts";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { convertToRaw } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { run } from "../../support/run.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type SampleTree, withTree } from "../tree/sample-tree.ts";
import {
  Caller,
  fallocateArguments,
  OPCODE,
  readArguments,
  setattrArguments,
  writeArguments,
} from "./call.ts";

const { EBADF, EINVAL, EISDIR, ENOENT, ENOSPC, EOPNOTSUPP, EPERM, EROFS } = constants.errno;
const ROOT = 1;
const DEVICE = 16;
const STATS = 17;
const CLUSTER = 4096;
/** The last cluster is cut short. */
const SIZE = 16 * CLUSTER + 512;

const POLICY: WritePolicy = { detectZeroes: "on", discard: "unmap", growable: false };
const GROWABLE: WritePolicy = { ...POLICY, growable: true };

/** Flags of open(2), as asm-generic/fcntl.h has them. */
const O_DSYNC = 0o10000;
const O_SYNC = 0o4010000;
/** Modes of fallocate(2). */
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const COLLAPSE_RANGE = 8;
const ZERO_RANGE = 16;
/** Bits of fuse_setattr_in.valid. */
const FATTR = { mode: 1, uid: 2, gid: 4, size: 8, atime: 16, mtime: 32, fh: 64 } as const;

interface Sample extends SampleTree {
  readonly caller: Caller;
  /** The whole disk, as qemu-img converts it; the device is not used any more. */
  readonly converted: () => Promise<Buffer>;
}

function diskImage(): Buffer {
  return qcow2Bytes({ clusterBits: 12, virtualSize: SIZE });
}

async function withDevice(
  body: (sample: Sample) => void | Promise<void>,
  policy: WritePolicy | undefined = POLICY,
): Promise<void> {
  await withTree(
    [["disk.qcow2", diskImage()]],
    async (sample) => {
      const server = { tree: sample.tree, ownership: { uid: 0, gid: 0, umask: undefined } };
      const path = join(sample.directory, "disk.qcow2");
      await body({
        ...sample,
        caller: new Caller(server, 2 * 65536),
        converted: async () => {
          sample.endWriting(0);
          await run("qemu-img", ["check", "-q", "-f", "qcow2", "-U", path]);
          const out = join(sample.directory, "disk.flat");
          await convertToRaw(path, "qcow2", out, ["-U"]);
          return fs.readFileSync(out);
        },
      });
    },
    policy === undefined ? {} : { policy },
  );
}

async function withReadOnlyDevice(body: (caller: Caller) => void): Promise<void> {
  await withTree([["disk.qcow2", diskImage()]], ({ tree }) => {
    body(new Caller({ tree, ownership: { uid: 0, gid: 0, umask: undefined } }));
  });
}

/** `size` of the fuse_attr that a GETATTR or SETATTR is answered with. */
function sizeOfReply(payload: Buffer): number {
  expect(payload).toHaveLength(16 + 88);
  return Number(payload.readBigUInt64LE(16 + 8));
}

function sizeOf(caller: Caller): number {
  return sizeOfReply(caller.call(OPCODE.getattr, DEVICE).payload);
}

describe("WRITE", () => {
  it("says how much it wrote, in 8 bytes", async () => {
    const data = new Random("fuse write").bytes(5000);
    await withDevice(async ({ caller, converted }) => {
      const { result, payload } = caller.call(OPCODE.write, DEVICE, writeArguments(1000, data));
      expect(result).toBe(8);
      expect(payload.readUInt32LE(0)).toBe(5000);
      expect(payload.readUInt32LE(4)).toBe(0);
      const back = caller.call(OPCODE.read, DEVICE, readArguments(1000, 5000));
      expectBytes(back.payload, data);
      const expected = Buffer.alloc(SIZE);
      data.copy(expected, 1000);
      expectBytes(await converted(), expected);
    });
  });

  it.each([
    { offset: 0, length: 0, written: 0 },
    { offset: SIZE - 1, length: 1, written: 1 },
    { offset: SIZE - 1, length: 2, written: 1 },
    { offset: SIZE - 700, length: 4096, written: 700 },
    { offset: SIZE, length: 0, written: 0 },
  ])("of $length bytes at $offset writes $written", async ({ offset, length, written }) => {
    const data = Buffer.alloc(length, 0xab);
    await withDevice(async ({ caller, converted }) => {
      const { result, payload } = caller.call(OPCODE.write, DEVICE, writeArguments(offset, data));
      expect(result).toBe(8);
      expect(payload.readUInt32LE(0)).toBe(written);
      const expected = Buffer.alloc(SIZE);
      data.copy(expected, offset);
      expectBytes(await converted(), expected);
    });
  });

  it.each([SIZE, SIZE + 1, 2 ** 40, 2 ** 53, 2n ** 62n, 2n ** 63n - 1n, -1])(
    "at %s, past the end, finds no space",
    async (offset) => {
      await withDevice(({ caller }) => {
        const args = writeArguments(offset, Buffer.alloc(10, 1));
        expect(caller.call(OPCODE.write, DEVICE, args).result).toBe(-ENOSPC);
        expect(sizeOf(caller)).toBe(SIZE);
      });
    },
  );

  it("past the end makes a growable device larger, in whole sectors", async () => {
    await withDevice(async ({ caller, converted }) => {
      const args = writeArguments(SIZE + 1000, Buffer.alloc(10, 1));
      expect(caller.call(OPCODE.write, DEVICE, args).payload.readUInt32LE(0)).toBe(10);
      const grown = Math.ceil((SIZE + 1010) / 512) * 512;
      expect(sizeOf(caller)).toBe(grown);
      const expected = Buffer.alloc(grown);
      expected.fill(1, SIZE + 1000, SIZE + 1010);
      expectBytes(await converted(), expected);
    }, GROWABLE);
  });

  it("takes no more data than the request has room for", async () => {
    await withDevice(({ caller }) => {
      const args = writeArguments(0, Buffer.alloc(10, 1), { size: 0xffff_ffff });
      expect(caller.call(OPCODE.write, DEVICE, args).result).toBe(-EINVAL);
    });
  });

  it.each([
    { flags: 0, syncs: 0 },
    { flags: O_DSYNC, syncs: 1 },
    { flags: O_SYNC | O_DSYNC, syncs: 1 },
  ])("with flags $flags waits for the disk $syncs times", async ({ flags, syncs }) => {
    await withDevice(({ caller }) => {
      // The first write to a cluster waits on its own account.
      caller.call(OPCODE.write, DEVICE, writeArguments(0, Buffer.alloc(100, 1)));
      const sync = vi.spyOn(LocalFile.prototype, "sync");
      const args = writeArguments(50, Buffer.alloc(100, 2), { flags });
      expect(caller.call(OPCODE.write, DEVICE, args).result).toBe(8);
      const calls = sync.mock.calls.length;
      sync.mockRestore();
      expect(calls).toBe(syncs);
    });
  });

  it("is for devices that are open for writing", async () => {
    const args = writeArguments(0, Buffer.alloc(10, 1));
    await withReadOnlyDevice((caller) => {
      expect(caller.call(OPCODE.write, DEVICE, args).result).toBe(-EBADF);
    });
    await withDevice(({ caller }) => {
      expect(caller.call(OPCODE.write, ROOT, args).result).toBe(-EISDIR);
      expect(caller.call(OPCODE.write, STATS, args).result).toBe(-EBADF);
      expect(caller.call(OPCODE.write, 999, args).result).toBe(-ENOENT);
    });
  });
});

describe("FSYNC", () => {
  it("waits for the disk, of what can be written", async () => {
    const count = (caller: Caller, nodeid: number): number => {
      const sync = vi.spyOn(LocalFile.prototype, "sync");
      expect(caller.call(OPCODE.fsync, nodeid, Buffer.alloc(16)).result).toBe(0);
      const calls = sync.mock.calls.length;
      sync.mockRestore();
      return calls;
    };
    await withDevice(({ caller }) => {
      caller.call(OPCODE.write, DEVICE, writeArguments(0, Buffer.alloc(100, 1)));
      expect(count(caller, DEVICE)).toBe(1);
      expect(count(caller, STATS)).toBe(0);
    });
    await withReadOnlyDevice((caller) => expect(count(caller, DEVICE)).toBe(0));
  });
});

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
      expect(caller.call(OPCODE.fallocate, 999, args).result).toBe(-ENOENT);
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
      expect(caller.call(OPCODE.setattr, 999, args).result).toBe(-ENOENT);
    });
  });
});
