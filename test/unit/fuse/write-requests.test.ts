/** WRITE, FSYNC and OPEN with O_TRUNC on hand-laid bytes; what they did is read back by qemu-img. */

import { constants } from "node:os";
import { describe, expect, it, vi } from "vitest";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { OPCODE } from "../../support/fuse-opcodes.ts";
import { Random } from "../../support/random.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type Caller, readArguments, setattrArguments, writeArguments } from "./call.ts";
import {
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

const { EBADF, EINVAL, EISDIR, ENOSPC, EPERM, ESTALE } = constants.errno;

/** Flags of open(2), as asm-generic/fcntl.h has them. */
const O_DSYNC = 0o10000;
const O_SYNC = 0o4010000;

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
      expect(caller.call(OPCODE.write, 999, args).result).toBe(-ESTALE);
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

describe("OPEN with O_TRUNC", () => {
  const O_WRONLY = 1;
  const O_TRUNC = 0o1000;
  const before = Buffer.alloc(SIZE, 0x77);

  /** Opens the device, which is full of data; gives the handle. */
  function open(caller: Caller, flags: number): number {
    for (let at = 0; at < SIZE; at += 32768) {
      caller.call(OPCODE.write, DEVICE, writeArguments(at, before.subarray(at, at + 32768)));
    }
    const args = Buffer.alloc(8);
    args.writeUInt32LE(flags, 0);
    const { result, payload } = caller.call(OPCODE.open, DEVICE, args);
    expect(result).toBe(16);
    return Number(payload.readBigUInt64LE(0));
  }

  const data = Buffer.alloc(100, 1);
  const write = (caller: Caller, fh: number, offset: number, writeFlags = 0): void => {
    const args = writeArguments(offset, data, { fh, writeFlags });
    expect(caller.call(OPCODE.write, DEVICE, args).payload.readUInt32LE(0)).toBe(100);
  };

  it("changes nothing by itself, nor does closing the file", async () => {
    await withDevice(async ({ caller, converted }) => {
      const fh = open(caller, O_WRONLY | O_TRUNC);
      expect(sizeOf(caller)).toBe(SIZE);
      const release = Buffer.alloc(24);
      release.writeBigUInt64LE(BigInt(fh), 0);
      expect(caller.call(OPCODE.release, DEVICE, release).result).toBe(0);
      expectBytes(await converted(), before);
    });
  });

  it("makes zeros of what its writer skips, and leaves what is behind", async () => {
    await withDevice(async ({ caller, converted }) => {
      const fh = open(caller, O_WRONLY | O_TRUNC);
      write(caller, fh, 5000);
      write(caller, fh, 5100);
      write(caller, fh, 20_000);
      const expected = Buffer.from(before);
      expected.fill(0, 0, 20_100).fill(1, 5000, 5200).fill(1, 20_000, 20_100);
      expectBytes(await converted(), expected);
    });
  });

  it("makes zeros up to the size that its writer gives the file at the end", async () => {
    await withDevice(async ({ caller, converted }) => {
      const fh = open(caller, O_WRONLY | O_TRUNC);
      write(caller, fh, 0);
      const args = setattrArguments(FATTR.size | FATTR.fh, 9000, fh);
      expect(caller.call(OPCODE.setattr, DEVICE, args).result).toBe(16 + 88);
      expect(sizeOf(caller)).toBe(SIZE);
      const expected = Buffer.from(before);
      expected.fill(0, 0, 9000).fill(1, 0, 100);
      expectBytes(await converted(), expected);
    });
  });

  it("makes zeros of all up to a larger size that its writer gives a growable device", async () => {
    await withDevice(async ({ caller, converted }) => {
      const fh = open(caller, O_WRONLY | O_TRUNC);
      write(caller, fh, 5000);
      const size = SIZE + 512 * 9;
      const args = setattrArguments(FATTR.size | FATTR.fh, size, fh);
      expect(sizeOfReply(caller.call(OPCODE.setattr, DEVICE, args).payload)).toBe(size);
      write(caller, fh, 7000);
      const expected = Buffer.alloc(size);
      expected.fill(1, 5000, 5100).fill(1, 7000, 7100);
      expectBytes(await converted(), expected);
    }, GROWABLE);
  });

  it("changes nothing where its writer wants a larger size of a device that cannot grow", async () => {
    await withDevice(async ({ caller, converted }) => {
      const fh = open(caller, O_WRONLY | O_TRUNC);
      const args = setattrArguments(FATTR.size | FATTR.fh, SIZE + 512, fh);
      expect(caller.call(OPCODE.setattr, DEVICE, args).result).toBe(-EPERM);
      expectBytes(await converted(), before);
    });
  });

  it("does not count for other files, nor for pages that were mapped", async () => {
    await withDevice(async ({ caller, converted }) => {
      const fh = open(caller, O_WRONLY | O_TRUNC);
      write(caller, 0, 5000);
      write(caller, fh, 6000, 1);
      const expected = Buffer.from(before);
      expected.fill(1, 5000, 5100).fill(1, 6000, 6100);
      expectBytes(await converted(), expected);
    });
  });

  it("is no more than OPEN where nothing is skipped", async () => {
    await withDevice(async ({ caller, converted }) => {
      const fh = open(caller, O_WRONLY);
      expect(fh).toBe(0);
      write(caller, fh, 5000);
      const expected = Buffer.from(before);
      expected.fill(1, 5000, 5100);
      expectBytes(await converted(), expected);
    });
  });
});
