/**
 * A request and the room for its reply: one buffer per thread, used for every request.
 *
 *     0            the request: its header, its arguments, and the data of a WRITE
 *     4096 - 16    the reply: its header, and from 4096 on its payload
 *
 * Arguments end before the reply begins, so a handler may read them while it puts the payload together.
 * The data of a WRITE lies where the reply will be: it has been written by then.
 */

import { type Decoded, decode, encode, type Field } from "../binary/struct.ts";
import { TWO_TO_32 } from "../binary/words.ts";
import { NativeBuffer, PAGE_SIZE } from "../syscalls/native-buffer.ts";
import { FUSE_MIN_READ_BUFFER, IN_HEADER_SIZE, OUT_HEADER_SIZE, REQUEST } from "./abi.ts";

/** What a handler returns when there is nothing to reply. */
export const NO_REPLY = -0x1_0000_0000;

/** Where the payload of a reply starts: a page boundary, behind the arguments of every request. */
const PAYLOAD_START = PAGE_SIZE;

export class Request {
  /** The request as it was read. */
  readonly input: NativeBuffer;
  /** The reply: its header, and from `OUT_HEADER_SIZE` on its payload, which is page aligned. */
  readonly output: NativeBuffer;
  /** Bytes of the payload that fit. */
  readonly payloadMax: number;

  /** @param dataMax bytes of the largest READ or WRITE */
  constructor(dataMax: number) {
    this.input = NativeBuffer.allocate(Math.max(PAYLOAD_START + dataMax, FUSE_MIN_READ_BUFFER));
    const { buffer, byteOffset } = this.input.bytes;
    const outputStart = PAYLOAD_START - OUT_HEADER_SIZE;
    this.output = new NativeBuffer(buffer, byteOffset + outputStart, OUT_HEADER_SIZE + dataMax);
    this.payloadMax = dataMax;
  }

  get opcode(): number {
    return this.input.view.getUint32(REQUEST.opcode, true);
  }

  get nodeid(): number {
    return this.u64(REQUEST.nodeid);
  }

  /** The low half of what names the request in its reply. */
  get uniqueLow(): number {
    return this.input.view.getUint32(REQUEST.unique, true);
  }

  /** A 64-bit field; above 2^53 - 1 it is rounded, and so refers to nothing that exists. */
  u64(offset: number): number {
    const view = this.input.view;
    return view.getUint32(offset + 4, true) * TWO_TO_32 + view.getUint32(offset, true);
  }

  /** The arguments behind the header: for requests that are rare. */
  arguments<const T extends readonly Field[]>(fields: T): Decoded<T> {
    return decode(fields, this.input.bytes, "le", IN_HEADER_SIZE);
  }

  /** A name that ends with a NUL, from byte `skip` of the arguments on. */
  name(skip = 0): string {
    const start = IN_HEADER_SIZE + skip;
    const length = this.input.view.getUint32(REQUEST.len, true);
    const bytes = this.input.bytes.subarray(start, length);
    const end = bytes.indexOf(0);
    return Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString();
  }

  /** What stands behind the name that starts at byte `skip` of the arguments; at most `size` bytes. */
  valueAfterName(skip: number, size: number): Buffer {
    const length = this.input.view.getUint32(REQUEST.len, true);
    const bytes = this.input.bytes.subarray(IN_HEADER_SIZE + skip, length);
    const start = bytes.indexOf(0) + 1;
    return Buffer.from(bytes.subarray(start, start + size));
  }

  /** Zero `length` bytes of the payload from `at` on, before fields are set. */
  clear(length: number, at = 0): void {
    this.output.bytes.fill(0, OUT_HEADER_SIZE + at, OUT_HEADER_SIZE + at + length);
  }

  /** Set fields of a structure that starts at byte `at` of the payload. */
  set<const T extends readonly Field[]>(
    fields: T,
    values: Readonly<Partial<Record<T[number][0], number | bigint>>>,
    at = 0,
  ): void {
    encode(fields, values, this.output.bytes, "le", OUT_HEADER_SIZE + at);
  }

  /** Copy bytes to byte `at` of the payload. */
  put(bytes: Uint8Array, at = 0): void {
    this.output.bytes.set(bytes, OUT_HEADER_SIZE + at);
  }
}
