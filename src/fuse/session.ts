/** The start of a FUSE session: INIT, and a queue for each thread. */

import fs from "node:fs";
import { constants } from "node:os";
import { decode, encode, sizeOf } from "../binary/struct.ts";
import { TsimgfsError } from "../errors.ts";
import { errnoCode, errnoName } from "../syscalls/errno-names.ts";
import { errno, ioctl, read, write } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { createTrace } from "../trace.ts";
import {
  FUSE_DEV_IOC_CLONE,
  FUSE_KERNEL_MINOR_VERSION,
  FUSE_KERNEL_VERSION,
  FUSE_MIN_READ_BUFFER,
  IN_HEADER,
  IN_HEADER_SIZE,
  INIT_FLAG,
  INIT_IN,
  INIT_OUT,
  OUT_HEADER,
  OUT_HEADER_SIZE,
} from "./abi.ts";

const INIT_OPCODE = 26;
/** Kernel 5.10 speaks 7.32: the oldest that this is meant for. */
const MINOR_MIN = 31;

/** Bytes of the largest READ or WRITE: what 256 pages hold, more than most kernels allow. */
const DATA_MAX = 1024 * 1024;
const PAGE_SIZE = 4096;
/** Asynchronous requests at once: enough for a deep queue of each of several readers. */
const MAX_BACKGROUND = 128;
const CONGESTION_THRESHOLD = 96;

const WANTED_FLAGS = Object.values(INIT_FLAG).reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n);
const LOW_32 = 0xffff_ffffn;

/** What was agreed with the kernel. */
export interface Session {
  /** Bytes of the largest READ or WRITE. */
  readonly dataMax: number;
}

/**
 * Answer INIT, the first request of a mount.
 *
 * @throws {TsimgfsError} the kernel's protocol is too old
 */
export function negotiate(fd: number): Session {
  const request = NativeBuffer.allocate(FUSE_MIN_READ_BUFFER);
  const length = readRequest(fd, request);
  const header = decode(IN_HEADER, request.bytes, "le");
  const init = decode(INIT_IN, request.bytes, "le", IN_HEADER_SIZE, length - IN_HEADER_SIZE);
  if (header.opcode !== INIT_OPCODE) {
    throw new TsimgfsError("EIO", "/dev/fuse", `the first request is ${header.opcode}, not INIT`);
  }
  if (init.major !== FUSE_KERNEL_VERSION || init.minor < MINOR_MIN) {
    const reason = `the kernel speaks FUSE ${init.major}.${init.minor}, at least 7.${MINOR_MIN} (Linux 5.10) is needed`;
    throw new TsimgfsError("ENOTSUP", "/dev/fuse", reason);
  }
  const offered = BigInt(init.flags) | (BigInt(init.flags2) << 32n);
  const flags = negotiateFlags(offered);
  createTrace("session")(
    "kernel %d.%d offers %s, agreed %s",
    init.major,
    init.minor,
    offered.toString(16),
    flags.toString(16),
  );

  const reply = NativeBuffer.allocate(OUT_HEADER_SIZE + sizeOf(INIT_OUT));
  encode(OUT_HEADER, { len: reply.length, error: 0, unique: header.unique }, reply.bytes, "le");
  encode(
    INIT_OUT,
    {
      major: FUSE_KERNEL_VERSION,
      minor: Math.min(init.minor, FUSE_KERNEL_MINOR_VERSION),
      max_readahead: init.max_readahead,
      flags: Number(flags & LOW_32),
      max_background: MAX_BACKGROUND,
      congestion_threshold: CONGESTION_THRESHOLD,
      max_write: DATA_MAX,
      time_gran: 1,
      max_pages: DATA_MAX / PAGE_SIZE,
      flags2: Number(flags >> 32n),
    },
    reply.bytes,
    "le",
    OUT_HEADER_SIZE,
  );
  if (write(fd, reply.address, reply.length) < 0) throw failed("write");
  return { dataMax: DATA_MAX };
}

/** Of what the kernel offers, what this server does; bits above 31 only where it can be told of them. */
function negotiateFlags(offered: bigint): bigint {
  const flags = offered & WANTED_FLAGS;
  const extended = (flags & (1n << BigInt(INIT_FLAG.initExt))) !== 0n;
  return extended ? flags : flags & LOW_32;
}

function readRequest(fd: number, buffer: NativeBuffer): number {
  for (;;) {
    const length = read(fd, buffer.address, buffer.length);
    if (length >= IN_HEADER_SIZE) return length;
    if (length < 0 && errno() === constants.errno.EINTR) continue;
    throw failed("read");
  }
}

function failed(call: string): TsimgfsError {
  const number = errno();
  return new TsimgfsError(errnoCode(number), "/dev/fuse", `${call} failed: ${errnoName(number)}`);
}

/**
 * Another descriptor of the session, with a queue of its own for replies; `fd` itself where this user
 * may not open /dev/fuse, or the kernel cannot clone: one queue serves all threads then.
 */
export function cloneQueue(fd: number): number {
  let queue: number;
  try {
    queue = fs.openSync("/dev/fuse", "r+");
  } catch {
    return fd;
  }
  const argument = NativeBuffer.allocate(4);
  argument.view.setUint32(0, fd, true);
  if (ioctl(queue, FUSE_DEV_IOC_CLONE, argument.address) >= 0) return queue;
  fs.closeSync(queue);
  return fd;
}
