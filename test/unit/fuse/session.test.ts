/** INIT with kernels of several ages, over a socket in the place of /dev/fuse. */

import fs from "node:fs";
import { describe, expect, it } from "vitest";
import { cloneQueue, negotiate } from "../../../src/fuse/session.ts";
import { OPCODE } from "../../support/fuse-opcodes.ts";
import { layRequest } from "./call.ts";
import { readReplies, withSocketPair } from "./socket-pair.ts";

const UNIQUE = 0xfedc_ba98_7654_3210n;
const INIT_EXT = 1n << 30n;

interface Kernel {
  readonly major?: number;
  readonly minor: number;
  readonly maxReadahead?: number;
  readonly flags?: bigint;
  /** Bytes of `fuse_init_in` that this kernel sends. */
  readonly length?: number;
}

/** `fuse_init_in` as this kernel lays it out. */
function initArguments({
  major = 7,
  minor,
  maxReadahead = 131072,
  flags = 0n,
  length = 64,
}: Kernel): Buffer {
  const bytes = Buffer.alloc(64);
  bytes.writeUInt32LE(major, 0);
  bytes.writeUInt32LE(minor, 4);
  bytes.writeUInt32LE(maxReadahead, 8);
  bytes.writeUInt32LE(Number(flags & 0xffff_ffffn), 12);
  bytes.writeUInt32LE(Number(flags >> 32n), 16);
  return bytes.subarray(0, length);
}

/** What the server answers to this kernel. */
function answerTo(kernel: Kernel): { reply: Buffer; dataMax: number } {
  return withSocketPair((pair) => {
    fs.writeSync(pair.kernel, layRequest(OPCODE.init, 0, initArguments(kernel), UNIQUE));
    const { dataMax } = negotiate(pair.server);
    const [reply, ...others] = readReplies(pair);
    if (reply === undefined || others.length > 0) throw new Error("one reply expected");
    return { reply, dataMax };
  });
}

const flagsOf = (reply: Buffer): bigint =>
  BigInt(reply.readUInt32LE(16 + 12)) | (BigInt(reply.readUInt32LE(16 + 32)) << 32n);

const ALL = 2n ** 64n - 1n;

describe("negotiate", () => {
  it("answers INIT in a reply of 80 bytes", () => {
    const { reply, dataMax } = answerTo({ minor: 39, flags: ALL, maxReadahead: 77777 });
    expect(reply).toHaveLength(80);
    expect(reply.readUInt32LE(0)).toBe(80);
    expect(reply.readInt32LE(4)).toBe(0);
    expect(reply.readBigUInt64LE(8)).toBe(UNIQUE);
    const out = reply.subarray(16);
    expect([out.readUInt32LE(0), out.readUInt32LE(4)]).toEqual([7, 39]);
    expect(out.readUInt32LE(8)).toBe(77777);
    expect(out.readUInt16LE(16)).toBeGreaterThanOrEqual(out.readUInt16LE(18));
    expect(out.readUInt32LE(20)).toBe(dataMax);
    expect(dataMax).toBe(1024 * 1024);
    expect(out.readUInt32LE(24)).toBe(1);
    expect(out.readUInt16LE(28)).toBe(256);
    expect(out.subarray(36).every((byte) => byte === 0)).toBe(true);
  });

  it.each([
    [31, 31],
    [32, 32],
    [45, 45],
    [46, 45],
    [1000, 45],
  ])("answers a kernel of 7.%i with 7.%i", (minor, answered) => {
    expect(answerTo({ minor }).reply.readUInt32LE(16 + 4)).toBe(answered);
  });

  it("turns on nothing that the kernel does not offer", () => {
    expect(flagsOf(answerTo({ minor: 39, flags: 0n }).reply)).toBe(0n);
    for (const offered of [
      1n,
      INIT_EXT | 0xffffn,
      (1n << 22n) | (1n << 3n),
      INIT_EXT | (1n << 36n),
    ]) {
      expect(flagsOf(answerTo({ minor: 39, flags: offered }).reply) & ~offered).toBe(0n);
    }
  });

  it("turns on atomic O_TRUNC, many pages, asynchronous direct I/O and READDIRPLUS", () => {
    const flags = flagsOf(answerTo({ minor: 39, flags: ALL }).reply);
    for (const bit of [3n, 13n, 15n, 22n]) expect((flags >> bit) & 1n, `bit ${bit}`).toBe(1n);
  });

  it("turns on neither POSIX locks, flock nor write-back caching, which it does not do", () => {
    const flags = flagsOf(answerTo({ minor: 39, flags: ALL }).reply);
    for (const bit of [1n, 10n, 16n]) expect((flags >> bit) & 1n, `bit ${bit}`).toBe(0n);
  });

  it("says nothing of the upper flags to a kernel that does not know them", () => {
    const flags = flagsOf(answerTo({ minor: 35, flags: ALL & ~INIT_EXT }).reply);
    expect(flags >> 32n).toBe(0n);
  });

  it("understands the shorter INIT of kernels before 7.36", () => {
    const { reply } = answerTo({ minor: 32, flags: 0x3fff_ffffn, length: 16 });
    expect(reply.readUInt32LE(16 + 4)).toBe(32);
    expect(flagsOf(reply) >> 32n).toBe(0n);
    expect(flagsOf(reply)).not.toBe(0n);
  });

  it.each([{ minor: 30 }, { minor: 12 }, { major: 6, minor: 99 }, { major: 8, minor: 40 }])(
    "refuses a kernel that speaks $major.$minor",
    (kernel) => {
      expect(() => answerTo(kernel)).toThrow(
        expect.objectContaining({
          code: "ENOTSUP",
          message: expect.stringMatching(/^\/dev\/fuse: the kernel speaks FUSE/),
        }),
      );
    },
  );

  it("refuses a session that starts with anything else", () => {
    withSocketPair((pair) => {
      fs.writeSync(pair.kernel, layRequest(OPCODE.getattr, 1, Buffer.alloc(16)));
      expect(() => negotiate(pair.server)).toThrow(/the first request is 3, not INIT/);
    });
  });

  it("fails where nothing can be read", () => {
    expect(() => negotiate(1_000_000)).toThrow(/^\/dev\/fuse: read failed: EBADF$/);
  });
});

describe("cloneQueue", () => {
  it("gives the same descriptor where there is nothing to clone, and leaves none open", () => {
    withSocketPair((pair) => {
      const before = fs.readdirSync("/proc/self/fd").length;
      expect(cloneQueue(pair.server)).toBe(pair.server);
      expect(fs.readdirSync("/proc/self/fd")).toHaveLength(before);
    });
  });
});
