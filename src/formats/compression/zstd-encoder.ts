/** zstd streams of one frame. Source: qcow2 specification, "Compressed clusters". */

import { UnsupportedError } from "../../errors.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { loadZstdEncoder, type ZstdEncoderFunctions } from "../../syscalls/zstd.ts";
import type { ClusterEncoder } from "./cluster-encoder.ts";

/** The library's default, which QEMU takes. */
const LEVEL = 3;

export class ZstdEncoder implements ClusterEncoder {
  #zstd: ZstdEncoderFunctions | undefined;
  #context = 0;

  encode(
    source: NativeBuffer,
    start: number,
    length: number,
    target: NativeBuffer,
    targetStart: number,
    capacity: number,
  ): number {
    this.#zstd ??= this.#initialise();
    const size = this.#zstd.compress(
      this.#context,
      target.address + targetStart,
      capacity,
      source.address + start,
      length,
      LEVEL,
    );
    // The other failures are of arguments and memory: the cluster is written plain then too.
    return this.#zstd.isError(size) !== 0 ? 0 : size;
  }

  #initialise(): ZstdEncoderFunctions {
    const zstd = loadZstdEncoder();
    if (zstd === undefined) {
      throw new UnsupportedError(
        "libzstd.so.1",
        "not found, it is needed to compress clusters with zstd; install libzstd1",
      );
    }
    this.#context = zstd.createContext();
    if (this.#context === 0) throw new UnsupportedError("libzstd.so.1", "no memory for an encoder");
    return zstd;
  }
}
