/**
 * zstd streams, of one or several frames. Source: qcow2 specification, "Compressed clusters", and
 * QEMU: frames are decoded until the cluster is full; what follows is ignored.
 *
 * Frames are decoded whole, straight into the cluster's place: then the decoder needs no window of
 * its own, whose size the frame chooses (up to 2 GiB).
 */

import { UnsupportedError } from "../../errors.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { loadZstd, type ZstdFunctions } from "../../syscalls/zstd.ts";
import type { ClusterDecoder } from "./cluster-decoder.ts";

export class ZstdDecoder implements ClusterDecoder {
  readonly partial = false;
  #zstd: ZstdFunctions | undefined;
  #context = 0;
  #input: NativeBuffer | undefined;
  #length = 0;

  begin(input: NativeBuffer, length: number): void {
    this.#input = input;
    this.#length = length;
  }

  produce(output: NativeBuffer, start: number, wanted: number): number {
    this.#zstd ??= this.#initialise();
    const zstd = this.#zstd;
    const source = this.#input?.address ?? 0;
    let produced = 0;
    let consumed = 0;
    while (produced < wanted && consumed < this.#length) {
      const size = zstd.findFrameCompressedSize(source + consumed, this.#length - consumed);
      if (zstd.isError(size) !== 0 || size <= 0) return produced;
      const target = output.address + start + produced;
      const written = zstd.decompress(
        this.#context,
        target,
        wanted - produced,
        source + consumed,
        size,
      );
      if (zstd.isError(written) !== 0) return produced;
      produced += written;
      consumed += size;
    }
    return produced;
  }

  #initialise(): ZstdFunctions {
    const zstd = loadZstd();
    if (zstd === undefined) {
      throw new UnsupportedError(
        "libzstd.so.1",
        "not found, it is needed to read clusters that are compressed with zstd; install libzstd1",
      );
    }
    this.#context = zstd.createContext();
    if (this.#context === 0) throw new UnsupportedError("libzstd.so.1", "no memory for a decoder");
    return zstd;
  }
}
