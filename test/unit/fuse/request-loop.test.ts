/** The loop of an I/O thread, over a socket in the place of /dev/fuse. */

import fs from "node:fs";
import { constants } from "node:os";
import { afterEach, describe, expect, it, vi } from "vitest";
import { serveRequests } from "../../../src/fuse/request-loop.ts";
import { OPCODE } from "../../support/fuse-opcodes.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { withTree } from "../tree/sample-tree.ts";
import { layRequest, nameArguments, readArguments } from "./call.ts";
import { endRequests, readReplies, withSocketPair } from "./socket-pair.ts";

const { EIO, ENOENT, ENOSYS } = constants.errno;
const DEVICE = 16;

const content = Buffer.alloc(512, 0x5a);
const image = qcow2Bytes({
  clusterBits: 9,
  virtualSize: 8192,
  clusters: { 0: { kind: "data", bytes: content }, 2: { kind: "entry", entry: 1n << 54n } },
});

interface Reply {
  readonly unique: bigint;
  readonly error: number;
  readonly payload: Buffer;
}

/** The replies to these requests. */
async function serve(requests: readonly Buffer[]): Promise<Reply[]> {
  let replies: Buffer[] = [];
  await withTree([["disk.qcow2", image]], ({ tree }) => {
    const server = { tree, ownership: { uid: 0, gid: 0, umask: undefined } };
    replies = withSocketPair((pair) => {
      for (const request of requests) fs.writeSync(pair.kernel, request);
      endRequests(pair);
      serveRequests(server, { fd: pair.server, dataMax: 65536 });
      return readReplies(pair);
    });
  });
  return replies.map((reply) => {
    expect(reply.readUInt32LE(0)).toBe(reply.length);
    return {
      unique: reply.readBigUInt64LE(8),
      error: reply.readInt32LE(4),
      payload: reply.subarray(16),
    };
  });
}

/** Catches what is written to standard error. */
function catchLog(): { text: () => string } {
  const spy = vi.spyOn(fs, "writeSync").mockReturnValue(0);
  return { text: () => spy.mock.calls.map(([, line]) => String(line)).join("") };
}

afterEach(() => {
  vi.restoreAllMocks();
});

describe("serveRequests", () => {
  it("answers one request after the other, each by its unique number", async () => {
    const replies = await serve([
      layRequest(OPCODE.lookup, 1, nameArguments("disk.raw"), 2n),
      layRequest(OPCODE.read, DEVICE, readArguments(0, 512), 2n ** 64n - 2n),
      layRequest(OPCODE.lookup, 1, nameArguments("none"), 6n),
      layRequest(99, 1, Buffer.alloc(0), 8n),
    ]);
    expect(replies.map(({ unique, error }) => [unique, error])).toEqual([
      [2n, 0],
      [2n ** 64n - 2n, 0],
      [6n, -ENOENT],
      [8n, -ENOSYS],
    ]);
    expect(replies.map(({ payload }) => payload.length)).toEqual([128, 512, 0, 0]);
    expect(replies[1]?.payload.equals(content)).toBe(true);
  });

  it("answers nothing to FORGET, BATCH_FORGET and INTERRUPT", async () => {
    const silent = [OPCODE.forget, OPCODE.batchForget, OPCODE.interrupt];
    const replies = await serve([
      ...silent.map((opcode) => layRequest(opcode, DEVICE, Buffer.alloc(16), 2n)),
      layRequest(OPCODE.getattr, DEVICE, Buffer.alloc(16), 4n),
    ]);
    expect(replies.map(({ unique }) => unique)).toEqual([4n]);
  });

  it("ends where there are no requests any more", async () => {
    expect(await serve([])).toEqual([]);
  });

  it("turns a failure into an errno, says why, and goes on", async () => {
    const requests = [
      layRequest(OPCODE.read, DEVICE, readArguments(1024, 100), 2n),
      layRequest(OPCODE.read, DEVICE, readArguments(0, 100), 4n),
    ];
    // The spy comes once the requests are written, which is done by the same function.
    const replies = await withTreeAndLog(requests);
    expect(replies.log).toMatch(/^tsimgfs: .*disk\.qcow2: L2 entry at 0x[0-9a-f]+.* \(READ\)\n$/);
    expect(replies.errors).toEqual([-EIO, 0]);
  });

  it("gives up where the descriptor is not one of a session", async () => {
    await withTree([["disk.qcow2", image]], ({ tree }) => {
      const server = { tree, ownership: { uid: 0, gid: 0, umask: undefined } };
      const log = catchLog();
      serveRequests(server, { fd: 1_000_000, dataMax: 65536 });
      expect(log.text()).toBe("tsimgfs: /dev/fuse: EBADF\n");
    });
  });
});

/** As `serve`, with what the server logs. */
async function withTreeAndLog(
  requests: readonly Buffer[],
): Promise<{ errors: number[]; log: string }> {
  let log = "";
  let errors: number[] = [];
  await withTree([["disk.qcow2", image]], ({ tree }) => {
    const server = { tree, ownership: { uid: 0, gid: 0, umask: undefined } };
    errors = withSocketPair((pair) => {
      for (const request of requests) fs.writeSync(pair.kernel, request);
      endRequests(pair);
      const caught = catchLog();
      serveRequests(server, { fd: pair.server, dataMax: 65536 });
      log = caught.text();
      return readReplies(pair).map((reply) => reply.readInt32LE(4));
    });
  });
  return { errors, log };
}
