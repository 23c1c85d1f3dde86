/** Requests laid out byte by byte from linux/fuse.h, and calls of the handlers that answer them. */

import { OPERATIONS, type Server, UNKNOWN_OPERATION } from "../../../src/fuse/opcodes.ts";
import { Request } from "../../../src/fuse/request.ts";
import { OPCODE } from "../../support/fuse-opcodes.ts";

/** `fuse_in_header` (40 bytes) and the arguments behind it. */
export function layRequest(
  opcode: number,
  nodeid: number | bigint,
  args: Uint8Array = new Uint8Array(0),
  unique = 0x1122_3344_5566_7788n,
): Buffer {
  const bytes = Buffer.alloc(40 + args.length);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(opcode, 4);
  bytes.writeBigUInt64LE(unique, 8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(nodeid)), 16);
  bytes.writeUInt32LE(1000, 24);
  bytes.writeUInt32LE(1000, 28);
  bytes.writeUInt32LE(4242, 32);
  bytes.set(args, 40);
  return bytes;
}

/** `fuse_read_in`, also of READDIR and READDIRPLUS: 40 bytes. */
export function readArguments(offset: number | bigint, size: number, fh = 0): Buffer {
  const bytes = Buffer.alloc(40);
  bytes.writeBigUInt64LE(BigInt(fh), 0);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(offset)), 8);
  bytes.writeUInt32LE(size, 16);
  return bytes;
}

/** Fields of `fuse_write_in` that are rarely looked at. */
interface WriteFields {
  /** Of open(2). */
  readonly flags?: number;
  /** Bytes that the request says it has. */
  readonly size?: number;
  readonly fh?: number;
  /** FUSE_WRITE_CACHE: 1. */
  readonly writeFlags?: number;
}

/** `fuse_write_in` (40 bytes) and the data behind it. */
export function writeArguments(
  offset: number | bigint,
  data: Uint8Array,
  { flags = 0, size = data.length, fh = 0, writeFlags = 0 }: WriteFields = {},
): Buffer {
  const bytes = Buffer.alloc(40);
  bytes.writeBigUInt64LE(BigInt(fh), 0);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(offset)), 8);
  bytes.writeUInt32LE(size, 16);
  bytes.writeUInt32LE(writeFlags, 20);
  bytes.writeUInt32LE(flags, 32);
  return Buffer.concat([bytes, data]);
}

/** `fuse_fallocate_in`: 32 bytes. */
export function fallocateArguments(
  offset: number | bigint,
  length: number | bigint,
  mode: number,
): Buffer {
  const bytes = Buffer.alloc(32);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(offset)), 8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(length)), 16);
  bytes.writeUInt32LE(mode, 24);
  return bytes;
}

/** `fuse_setattr_in`: 88 bytes; `valid` has the FATTR bits. */
export function setattrArguments(valid: number, size: number | bigint = 0, fh = 0): Buffer {
  const bytes = Buffer.alloc(88);
  bytes.writeUInt32LE(valid, 0);
  bytes.writeBigUInt64LE(BigInt(fh), 8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(size)), 16);
  return bytes;
}

/** `fuse_lseek_in`: 24 bytes. */
export function lseekArguments(offset: number | bigint, whence: number): Buffer {
  const bytes = Buffer.alloc(24);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(offset)), 8);
  bytes.writeUInt32LE(whence, 16);
  return bytes;
}

/** `fuse_getxattr_in` (8 bytes) and, for GETXATTR, the name. */
export function xattrArguments(size: number, name?: string): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32LE(size, 0);
  return name === undefined ? bytes : Buffer.concat([bytes, Buffer.from(`${name}\0`)]);
}

/** A name as LOOKUP carries it. */
export const nameArguments = (name: string): Buffer => Buffer.from(`${name}\0`);

export interface Answer {
  /** What the handler returned: bytes, or a negative errno. */
  readonly result: number;
  readonly payload: Buffer;
}

/** One thread's pair of buffers, and its handlers. */
export class Caller {
  readonly #server: Server;
  readonly #request: Request;

  constructor(server: Server, dataMax = 65536) {
    this.#server = server;
    this.#request = new Request(dataMax);
  }

  call(opcode: number, nodeid: number | bigint, args?: Uint8Array): Answer {
    const { input, output } = this.#request;
    // What earlier requests and replies left behind must not show.
    input.bytes.fill(0xdd);
    output.bytes.fill(0xee);
    input.bytes.set(layRequest(opcode, nodeid, args));
    // The data of a WRITE lies where replies are put.
    const before = Buffer.from(output.bytes);
    const operation = OPERATIONS.get(opcode) ?? UNKNOWN_OPERATION;
    const result = operation.handle(this.#server, this.#request);
    const length = Math.max(result, 0);
    const isUntouched = before.subarray(16 + length).equals(output.bytes.subarray(16 + length));
    if (opcode !== OPCODE.read && !isUntouched) {
      throw new Error(`${operation.name} wrote more than the ${length} bytes of its reply`);
    }
    return { result, payload: Buffer.from(output.bytes.subarray(16, 16 + length)) };
  }
}
