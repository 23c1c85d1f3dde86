/** A pair of sockets that keep messages apart, as /dev/fuse does: requests in one end, replies out of it. */

import fs from "node:fs";
import koffi from "koffi";
import { socketpair } from "../../../src/syscalls/libc.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SHUT_WR = 1;

const shutdown: (fd: number, how: number) => number = koffi
  .load("libc.so.6")
  .func("int shutdown(int fd, int how)");

export interface SocketPair {
  /** Where the test stands for the kernel. */
  readonly kernel: number;
  /** What the server takes for /dev/fuse. */
  readonly server: number;
}

/** Calls `body` with a pair, and closes both ends. */
export function withSocketPair<T>(body: (pair: SocketPair) => T): T {
  const memory = NativeBuffer.allocate(8);
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, memory.address) < 0) throw new Error("socketpair");
  const pair = { kernel: memory.view.getInt32(0, true), server: memory.view.getInt32(4, true) };
  try {
    return body(pair);
  } finally {
    fs.closeSync(pair.kernel);
    fs.closeSync(pair.server);
  }
}

/** No more requests: the server reads 0 bytes. */
export function endRequests({ kernel }: SocketPair): void {
  if (shutdown(kernel, SHUT_WR) < 0) throw new Error("shutdown");
}

/** All replies that the server has written, one buffer each. The server writes no more. */
export function readReplies({ kernel, server }: SocketPair): Buffer[] {
  if (shutdown(server, SHUT_WR) < 0) throw new Error("shutdown");
  const replies: Buffer[] = [];
  const buffer = Buffer.alloc(1024 * 1024);
  for (;;) {
    const count = fs.readSync(kernel, buffer);
    if (count === 0) return replies;
    replies.push(Buffer.from(buffer.subarray(0, count)));
  }
}
