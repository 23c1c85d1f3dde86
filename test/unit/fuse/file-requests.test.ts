/** OPEN, READ, LSEEK, xattrs and requests that are refused or unknown, on hand-laid bytes. */

import { constants } from "node:os";
import { describe, expect, it } from "vitest";
import { OPERATIONS, operationTable } from "../../../src/fuse/opcodes.ts";
import { NO_REPLY } from "../../../src/fuse/request.ts";
import { OPCODE } from "../../support/fuse-opcodes.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { Random } from "../../support/random.ts";
import { DAEMON_PID, withTree } from "../tree/sample-tree.ts";
import { Caller, lseekArguments, readArguments, xattrArguments } from "./call.ts";

const { EINVAL, EISDIR, ENODATA, ENOSYS, ENOTDIR, ENXIO, EOPNOTSUPP, EPERM, ERANGE, ESTALE } =
  constants.errno;
const ROOT = 1;
const DEVICE = 16;
const STATS = 17;
const SIZE = 16 * 512;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

const content = new Random("device content").bytes(512);

async function withCaller(body: (caller: Caller) => void, dataMax = 65536): Promise<void> {
  const image = qcow2Bytes({
    clusterBits: 9,
    virtualSize: SIZE,
    clusters: { 0: { kind: "data", bytes: content }, 8: { kind: "data", bytes: content } },
  });
  await withTree([["disk.qcow2", image]], ({ tree }) => {
    body(new Caller({ tree, ownership: { uid: 0, gid: 0, umask: undefined } }, dataMax));
  });
}

describe("OPEN and RELEASE", () => {
  const openArguments = (flags: number): Buffer => {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt32LE(flags, 0);
    return bytes;
  };

  it("lets the kernel keep what it has cached of a device; who opens it with O_DIRECT goes past that", async () => {
    await withCaller((caller) => {
      const { result, payload } = caller.call(OPCODE.open, DEVICE, openArguments(0));
      expect(result).toBe(16);
      // FOPEN_KEEP_CACHE and FOPEN_NOFLUSH; FOPEN_DIRECT_IO is bit 0.
      expect(payload.readUInt32LE(8) & 35).toBe(2 | 32);
      const direct = caller.call(OPCODE.open, DEVICE, openArguments(0o40000));
      if (process.arch === "x64") expect(direct.payload.readUInt32LE(8) & 3).toBe(1 | 2);
    });
  });

  it("refuses to open directories as files and files as directories", async () => {
    await withCaller((caller) => {
      expect(caller.call(OPCODE.open, ROOT, openArguments(0)).result).toBe(-EISDIR);
      expect(caller.call(OPCODE.opendir, DEVICE, openArguments(0)).result).toBe(-ENOTDIR);
    });
  });

  it("reads the statistics by the handle that OPEN gave, until RELEASE", async () => {
    await withCaller((caller) => {
      const { payload } = caller.call(OPCODE.open, STATS, openArguments(0));
      const fh = Number(payload.readBigUInt64LE(0));
      const text = caller.call(OPCODE.read, STATS, readArguments(0, 16384, fh)).payload.toString();
      expect(JSON.parse(text)).toMatchObject({ format: "qcow2", "virtual-size": SIZE });
      const release = Buffer.alloc(24);
      release.writeBigUInt64LE(BigInt(fh), 0);
      expect(caller.call(OPCODE.release, STATS, release).result).toBe(0);
      expect(() => caller.call(OPCODE.read, STATS, readArguments(0, 4096, fh))).toThrow();
    });
  });
});

describe("READ", () => {
  it.each([
    { offset: 0, size: 512, length: 512 },
    { offset: 1, size: 4096, length: 4096 },
    { offset: SIZE - 1, size: 1, length: 1 },
    { offset: SIZE - 1, size: 4096, length: 1 },
    { offset: SIZE, size: 4096, length: 0 },
    { offset: SIZE + 1, size: 4096, length: 0 },
    { offset: 2 ** 52, size: 4096, length: 0 },
    { offset: 2n ** 63n - 1n, size: 4096, length: 0 },
    { offset: 0, size: 0, length: 0 },
    { offset: 0, size: 65536, length: SIZE },
  ])("of $size bytes at $offset gives $length", async ({ offset, size, length }) => {
    await withCaller((caller) => {
      const { result, payload } = caller.call(OPCODE.read, DEVICE, readArguments(offset, size));
      expect(result).toBe(length);
      const disk = Buffer.concat([content, Buffer.alloc(7 * 512), content, Buffer.alloc(7 * 512)]);
      const start = Number(offset);
      expect(payload.equals(disk.subarray(start, start + length))).toBe(true);
    });
  });

  it("gives no more than a reply holds", async () => {
    await withCaller((caller) => {
      expect(caller.call(OPCODE.read, DEVICE, readArguments(0, 0xffff_ffff)).result).toBe(1000);
    }, 1000);
  });

  it("refuses directories and nodes that are not there", async () => {
    await withCaller((caller) => {
      expect(caller.call(OPCODE.read, ROOT, readArguments(0, 10)).result).toBe(-EISDIR);
      expect(caller.call(OPCODE.read, 999, readArguments(0, 10)).result).toBe(-ESTALE);
    });
  });
});

describe("LSEEK", () => {
  const seek = (caller: Caller, offset: number | bigint, whence: number): number => {
    const { result, payload } = caller.call(OPCODE.lseek, DEVICE, lseekArguments(offset, whence));
    if (result < 0) return result;
    expect(result).toBe(8);
    return Number(payload.readBigUInt64LE(0));
  };

  it("finds data and holes, the last of which starts where the data ends", async () => {
    await withCaller((caller) => {
      expect(seek(caller, 0, SEEK_DATA)).toBe(0);
      expect(seek(caller, 0, SEEK_HOLE)).toBe(512);
      expect(seek(caller, 512, SEEK_DATA)).toBe(8 * 512);
      expect(seek(caller, 8 * 512 + 5, SEEK_DATA)).toBe(8 * 512 + 5);
      expect(seek(caller, 8 * 512 + 5, SEEK_HOLE)).toBe(9 * 512);
      expect(seek(caller, SIZE - 1, SEEK_HOLE)).toBe(SIZE - 1);
    });
  });

  it("has no data beyond the last, and nothing at or beyond the end", async () => {
    await withCaller((caller) => {
      expect(seek(caller, 9 * 512, SEEK_DATA)).toBe(-ENXIO);
      for (const whence of [SEEK_DATA, SEEK_HOLE]) {
        for (const offset of [SIZE, SIZE + 1, 2 ** 50, 2n ** 53n, 2n ** 62n, 2n ** 63n - 1n]) {
          expect(seek(caller, offset, whence), `offset ${offset}`).toBe(-ENXIO);
        }
      }
    });
  });

  it("refuses negative offsets and other whences", async () => {
    await withCaller((caller) => {
      for (const offset of [-1, -(2n ** 60n), -(2n ** 63n)]) {
        expect(seek(caller, offset, SEEK_DATA), `offset ${offset}`).toBe(-ENXIO);
      }
      for (const whence of [0, 1, 2, 5, 0xffff_ffff]) expect(seek(caller, 0, whence)).toBe(-EINVAL);
      expect(caller.call(OPCODE.lseek, ROOT, lseekArguments(0, SEEK_DATA)).result).toBe(-EISDIR);
    });
  });
});

describe("GETXATTR and LISTXATTR", () => {
  const pid = String(DAEMON_PID);
  const get = (caller: Caller, size: number, name: string) =>
    caller.call(OPCODE.getxattr, DEVICE, xattrArguments(size, name));

  it("tell the size to whoever has no room, and the value to whoever has enough", async () => {
    await withCaller((caller) => {
      const asked = get(caller, 0, "user.tsimgfs.pid");
      expect(asked.result).toBe(8);
      expect(asked.payload.readUInt32LE(0)).toBe(pid.length);
      for (const size of [pid.length, pid.length + 1, 65536]) {
        expect(get(caller, size, "user.tsimgfs.pid").payload.toString()).toBe(pid);
      }
      expect(get(caller, pid.length - 1, "user.tsimgfs.pid").result).toBe(-ERANGE);
    });
  });

  it.each([
    "user.tsimgfs.none",
    "security.capability",
    "system.posix_acl_access",
    "",
    "user.tsimgfs.pi",
  ])("know no attribute %j", async (name) => {
    await withCaller((caller) => {
      expect(get(caller, 0, name).result).toBe(-ENODATA);
      expect(get(caller, 100, name).result).toBe(-ENODATA);
    });
  });

  it("list the names, each with a NUL", async () => {
    await withCaller((caller) => {
      const list = (nodeid: number, size: number) =>
        caller.call(OPCODE.listxattr, nodeid, xattrArguments(size));
      const text = list(DEVICE, 4096).payload.toString();
      expect(text.endsWith("\0")).toBe(true);
      expect(text.split("\0").slice(0, -1).sort()).toEqual([
        "user.tsimgfs.cluster-size",
        "user.tsimgfs.counters",
        "user.tsimgfs.format",
        "user.tsimgfs.image",
        "user.tsimgfs.pid",
        "user.tsimgfs.virtual-size",
      ]);
      expect(list(DEVICE, 0).payload.readUInt32LE(0)).toBe(Buffer.byteLength(text));
      expect(list(DEVICE, text.length - 1).result).toBe(-ERANGE);
      expect(list(STATS, 0).payload.readUInt32LE(0)).toBe(0);
      expect(list(STATS, 100).result).toBe(0);
    });
  });
});

describe("the table of opcodes", () => {
  it.each([6, 8, 9, 10, 11, 12, 13, 35, 45, 51])(
    "answers EPERM to %i, which would add, remove or rename something",
    async (opcode) => {
      await withCaller((caller) => expect(caller.call(opcode, DEVICE).result).toBe(-EPERM));
    },
  );

  it.each([21, 24])("answers EOPNOTSUPP to %i, which would change attributes", async (opcode) => {
    await withCaller((caller) => expect(caller.call(opcode, DEVICE).result).toBe(-EOPNOTSUPP));
  });

  it.each([47, 53])("answers ENOSYS to %i, so that the kernel copies by itself", async (opcode) => {
    await withCaller((caller) => expect(caller.call(opcode, DEVICE).result).toBe(-ENOSYS));
  });

  it.each([OPCODE.forget, OPCODE.batchForget, OPCODE.interrupt])(
    "answers nothing to %i",
    async (opcode) => {
      await withCaller((caller) => expect(caller.call(opcode, DEVICE).result).toBe(NO_REPLY));
    },
  );

  it.each([7, 19, 54, 100, 4096, 0xffff_ffff])("answers ENOSYS to opcode %i", async (opcode) => {
    await withCaller((caller) => expect(caller.call(opcode, DEVICE).result).toBe(-ENOSYS));
    expect(operationTable()[opcode]).toBeUndefined();
  });

  it("is the same as an array and as a map", () => {
    const table = operationTable();
    for (const [opcode, operation] of OPERATIONS) expect(table[opcode]).toBe(operation);
  });
});
