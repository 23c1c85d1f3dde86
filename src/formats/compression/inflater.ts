/**
 * Raw deflate streams. One zlib state per thread and image, used again for every cluster; a cluster
 * is inflated only as far as somebody reads. Source: qcow2 specification, "Compressed clusters".
 */

import assert from "node:assert";
import { TWO_TO_32 } from "../../binary/words.ts";
import { UnsupportedError } from "../../errors.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import {
  loadZlib,
  Z_BUF_ERROR,
  Z_OK,
  Z_STREAM,
  Z_STREAM_END,
  Z_SYNC_FLUSH,
  type ZlibFunctions,
} from "../../syscalls/zlib.ts";
import type { ClusterDecoder } from "./cluster-decoder.ts";

/** Raw deflate, window of 2^15: more than QEMU's 2^12, for images of other writers. */
const WINDOW_BITS = -15;

export class Inflater implements ClusterDecoder {
  readonly partial = true;
  readonly #stream = NativeBuffer.allocate(Z_STREAM.size);
  #zlib: ZlibFunctions | undefined;
  /** Referenced, so that the memory that zlib reads from stays. */
  #input: NativeBuffer | undefined;

  begin(input: NativeBuffer, length: number): void {
    const zlib = this.#zlib ?? this.#initialise();
    zlib.inflateReset(this.#stream.address);
    this.#input = input;
    this.#setPointer(Z_STREAM.nextIn, input.address);
    this.#stream.view.setUint32(Z_STREAM.availIn, length, true);
  }

  produce(output: NativeBuffer, start: number, wanted: number): number {
    const zlib = this.#zlib;
    assert(zlib !== undefined && this.#input !== undefined, "begin comes first");
    this.#setPointer(Z_STREAM.nextOut, output.address + start);
    this.#stream.view.setUint32(Z_STREAM.availOut, wanted, true);
    const result = zlib.inflate(this.#stream.address, Z_SYNC_FLUSH);
    if (result !== Z_OK && result !== Z_STREAM_END && result !== Z_BUF_ERROR) return 0;
    return wanted - this.#stream.view.getUint32(Z_STREAM.availOut, true);
  }

  #initialise(): ZlibFunctions {
    const zlib = loadZlib();
    if (zlib === undefined) {
      throw new UnsupportedError(
        "libz.so.1",
        "not found, it is needed to read compressed clusters",
      );
    }
    const { address } = this.#stream;
    const result = zlib.inflateInit2(address, WINDOW_BITS, zlib.zlibVersion(), Z_STREAM.size);
    if (result !== Z_OK) {
      throw new UnsupportedError("libz.so.1", `inflateInit2 failed with ${result}`);
    }
    this.#zlib = zlib;
    return zlib;
  }

  #setPointer(offset: number, address: number): void {
    this.#stream.view.setUint32(offset, address % TWO_TO_32, true);
    this.#stream.view.setUint32(offset + 4, Math.floor(address / TWO_TO_32), true);
  }
}
