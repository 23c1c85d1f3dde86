/** LOOKUP, GETATTR, STATX and STATFS: structures read back by the offsets of linux/fuse.h. */

import { constants } from "node:os";
import { describe, expect, it } from "vitest";
import type { Ownership } from "../../../src/fuse/attributes.ts";
import { OPCODE } from "../../support/fuse-opcodes.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { ALLOCATED_SIZE, MODIFIED_AT, withTree } from "../tree/sample-tree.ts";
import { Caller, nameArguments } from "./call.ts";

const { ENOENT, ENOTDIR, ESTALE } = constants.errno;
const ROOT = 1;
const DEVICE = 16;
const SNAPSHOTS = 18;
const SECONDS = BigInt(Math.floor(MODIFIED_AT));
const VIRTUAL_SIZE = 1024 * 1024;
const OWNERSHIP: Ownership = { uid: 1001, gid: 1002, umask: undefined };

async function withCaller(body: (caller: Caller) => void, ownership = OWNERSHIP): Promise<void> {
  const image = qcow2Bytes({ virtualSize: VIRTUAL_SIZE });
  await withTree([["disk.qcow2", image]], ({ tree }) => body(new Caller({ tree, ownership })));
}

/** `fuse_attr`: 88 bytes. */
function attr(bytes: Buffer): Record<string, number | bigint> {
  expect(bytes).toHaveLength(88);
  return {
    ino: bytes.readBigUInt64LE(0),
    size: bytes.readBigUInt64LE(8),
    blocks: bytes.readBigUInt64LE(16),
    atime: bytes.readBigUInt64LE(24),
    mtime: bytes.readBigUInt64LE(32),
    ctime: bytes.readBigUInt64LE(40),
    mtimensec: bytes.readUInt32LE(52),
    mode: bytes.readUInt32LE(60),
    nlink: bytes.readUInt32LE(64),
    uid: bytes.readUInt32LE(68),
    gid: bytes.readUInt32LE(72),
    rdev: bytes.readUInt32LE(76),
    blksize: bytes.readUInt32LE(80),
    flags: bytes.readUInt32LE(84),
  };
}

const DEVICE_ATTR = {
  ino: BigInt(DEVICE),
  size: BigInt(VIRTUAL_SIZE),
  blocks: BigInt(ALLOCATED_SIZE / 512),
  atime: SECONDS,
  mtime: SECONDS,
  ctime: SECONDS,
  mtimensec: 500_000_000,
  mode: 0o100400,
  nlink: 1,
  uid: 1001,
  gid: 1002,
  rdev: 0,
  blksize: 1024 * 1024,
  flags: 0,
};

describe("LOOKUP", () => {
  it("gives the node, how long its name may be kept, and its attributes", async () => {
    await withCaller((caller) => {
      const { result, payload } = caller.call(OPCODE.lookup, ROOT, nameArguments("disk.raw"));
      expect(result).toBe(128);
      expect(payload.readBigUInt64LE(0)).toBe(BigInt(DEVICE));
      expect(payload.readBigUInt64LE(8)).toBe(0n);
      expect(payload.readBigUInt64LE(16)).toBeGreaterThan(0n);
      expect(payload.readBigUInt64LE(24)).toBeGreaterThan(0n);
      expect(attr(payload.subarray(40))).toEqual(DEVICE_ATTR);
    });
  });

  it("lets nobody keep the attributes of the statistics, which change", async () => {
    await withCaller((caller) => {
      const { payload } = caller.call(OPCODE.lookup, ROOT, nameArguments("disk.stats.json"));
      expect(payload.readBigUInt64LE(24)).toBe(0n);
    });
  });

  it.each(["disk", "disk.raw2", "", "...", "__proto__", "x".repeat(255)])(
    "finds no %j",
    async (name) => {
      await withCaller((caller) => {
        expect(caller.call(OPCODE.lookup, ROOT, nameArguments(name)).result).toBe(-ENOENT);
      });
    },
  );

  it("ends a name at its NUL, and without one at the end of the request", async () => {
    await withCaller((caller) => {
      const padded = Buffer.from("disk.raw\0\0\0\0junk");
      expect(caller.call(OPCODE.lookup, ROOT, padded).result).toBe(128);
      expect(caller.call(OPCODE.lookup, ROOT, Buffer.from("disk.raw")).result).toBe(128);
    });
  });

  it("finds what the kernel has forgotten, and somebody has a handle of", async () => {
    await withCaller((caller) => {
      const found = (nodeid: number, name: string): bigint => {
        const { result, payload } = caller.call(OPCODE.lookup, nodeid, nameArguments(name));
        expect(result).toBe(128);
        return payload.readBigUInt64LE(0);
      };
      for (const nodeid of [ROOT, DEVICE, SNAPSHOTS]) {
        expect(found(nodeid, ".")).toBe(BigInt(nodeid));
      }
      expect(found(SNAPSHOTS, "..")).toBe(BigInt(ROOT));
      expect(found(ROOT, "..")).toBe(BigInt(ROOT));
      expect(caller.call(OPCODE.lookup, 999, nameArguments(".")).result).toBe(-ESTALE);
    });
  });

  it("finds nothing in files, nor in what is not there", async () => {
    await withCaller((caller) => {
      expect(caller.call(OPCODE.lookup, DEVICE, nameArguments("x")).result).toBe(-ENOTDIR);
      expect(caller.call(OPCODE.lookup, 999, nameArguments("x")).result).toBeLessThan(0);
    });
  });
});

describe("GETATTR", () => {
  it("describes a device", async () => {
    await withCaller((caller) => {
      const { result, payload } = caller.call(OPCODE.getattr, DEVICE, Buffer.alloc(16));
      expect(result).toBe(104);
      expect(payload.readBigUInt64LE(0)).toBeGreaterThan(0n);
      expect(payload.readUInt32LE(8)).toBe(0);
      expect(attr(payload.subarray(16))).toEqual(DEVICE_ATTR);
    });
  });

  it.each([
    { umask: undefined, file: 0o100400, directory: 0o040500 },
    { umask: 0, file: 0o100444, directory: 0o040555 },
    { umask: 0o22, file: 0o100444, directory: 0o040555 },
    { umask: 0o77, file: 0o100400, directory: 0o040500 },
    { umask: 0o27, file: 0o100440, directory: 0o040550 },
    { umask: 0o777, file: 0o100000, directory: 0o040000 },
  ])(
    "gives the modes $file and $directory with the umask $umask",
    async ({ umask, file, directory }) => {
      await withCaller(
        (caller) => {
          const modeOf = (nodeid: number): number =>
            caller.call(OPCODE.getattr, nodeid, Buffer.alloc(16)).payload.readUInt32LE(16 + 60);
          expect(modeOf(DEVICE)).toBe(file);
          expect(modeOf(ROOT)).toBe(directory);
        },
        { ...OWNERSHIP, umask },
      );
    },
  );

  it.each([0, 3, 999, 2 ** 40, 2n ** 63n, -1])("knows no node %i", async (nodeid) => {
    await withCaller((caller) => {
      for (const opcode of [OPCODE.getattr, OPCODE.statx, OPCODE.open, OPCODE.opendir]) {
        expect(caller.call(opcode, nodeid, Buffer.alloc(24)).result).toBe(-ESTALE);
      }
    });
  });
});

describe("STATX", () => {
  it("describes a device in a fuse_statx_out of 288 bytes", async () => {
    await withCaller((caller) => {
      const { result, payload } = caller.call(OPCODE.statx, DEVICE, Buffer.alloc(24));
      expect(result).toBe(288);
      const stat = payload.subarray(32);
      expect(stat.readUInt32LE(0)).toBe(0x7ff);
      expect(stat.readUInt32LE(4)).toBe(1024 * 1024);
      expect(stat.readUInt32LE(16)).toBe(1);
      expect([stat.readUInt32LE(20), stat.readUInt32LE(24)]).toEqual([1001, 1002]);
      expect(stat.readUInt16LE(28)).toBe(0o100400);
      expect(stat.readBigUInt64LE(32)).toBe(BigInt(DEVICE));
      expect(stat.readBigUInt64LE(40)).toBe(BigInt(VIRTUAL_SIZE));
      expect(stat.readBigUInt64LE(48)).toBe(BigInt(ALLOCATED_SIZE / 512));
      // fuse_sx_time: seconds, nanoseconds, reserved; atime, btime, ctime, mtime.
      for (const [at, seconds] of [
        [64, SECONDS],
        [80, 0n],
        [96, SECONDS],
        [112, SECONDS],
      ] as const) {
        expect(stat.readBigUInt64LE(at)).toBe(seconds);
        expect(stat.readUInt32LE(at + 8)).toBe(seconds === 0n ? 0 : 500_000_000);
      }
      expect(stat.subarray(128).every((byte) => byte === 0)).toBe(true);
    });
  });
});

describe("STATFS", () => {
  it("gives the cluster size of a device as the block size, and a file system that is full", async () => {
    await withCaller((caller) => {
      const { result, payload } = caller.call(OPCODE.statfs, DEVICE);
      expect(result).toBe(80);
      expect(payload.readBigUInt64LE(0)).toBe(16n);
      expect([payload.readBigUInt64LE(8), payload.readBigUInt64LE(16)]).toEqual([0n, 0n]);
      expect([
        payload.readUInt32LE(40),
        payload.readUInt32LE(44),
        payload.readUInt32LE(48),
      ]).toEqual([65536, 255, 65536]);
      expect(payload.subarray(52).every((byte) => byte === 0)).toBe(true);
    });
  });

  it("answers for the root, and for nodes that it does not know", async () => {
    await withCaller((caller) => {
      for (const nodeid of [ROOT, 0, 999]) {
        const { payload } = caller.call(OPCODE.statfs, nodeid);
        expect(payload.readBigUInt64LE(0) * BigInt(payload.readUInt32LE(48))).toBe(
          BigInt(VIRTUAL_SIZE),
        );
      }
    });
  });
});
