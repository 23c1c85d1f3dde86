/**
 * zstd streams, of one or several frames. Source: qcow2 specification, "Compressed clusters", and
 * QEMU: frames are decoded until the cluster is full; what follows is ignored.
 *
 * Frames are decoded whole, straight into the cluster's place: then the decoder needs no window of
 * its own, whose size the frame chooses (up to 2 GiB).
 */

import { Decompress } from "fzstd";
import { UnsupportedError } from "../../errors.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { loadZstd, type ZstdFunctions } from "../../syscalls/zstd.ts";
import type { ClusterDecoder } from "./cluster-decoder.ts";

/** The decoder that this system offers: libzstd, else one in JavaScript. */
export function createZstdDecoder(): ClusterDecoder {
  const zstd = loadZstd();
  return zstd === undefined ? new JsZstdDecoder() : new NativeZstdDecoder(zstd);
}

class NativeZstdDecoder implements ClusterDecoder {
  readonly partial = false;
  readonly #zstd: ZstdFunctions;
  readonly #context: number;
  #input: NativeBuffer | undefined;
  #length = 0;

  constructor(zstd: ZstdFunctions) {
    this.#zstd = zstd;
    this.#context = zstd.createContext();
    if (this.#context === 0) throw new UnsupportedError("libzstd", "no memory for a decoder");
  }

  begin(input: NativeBuffer, length: number): void {
    this.#input = input;
    this.#length = length;
  }

  produce(output: NativeBuffer, start: number, wanted: number): number {
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
}

/** The largest window that the decoder in JavaScript, which allocates it, accepts: bytes. */
const JS_WINDOW_MAX = 8 * 1024 * 1024;
const ZSTD_MAGIC = 0xfd2f_b528;

/** For systems without libzstd: several times slower, and makes garbage. */
export class JsZstdDecoder implements ClusterDecoder {
  readonly partial = false;
  #input: NativeBuffer | undefined;
  #length = 0;

  begin(input: NativeBuffer, length: number): void {
    this.#input = input;
    this.#length = length;
  }

  produce(output: NativeBuffer, start: number, wanted: number): number {
    if (this.#input === undefined || windowSize(this.#input.view) > JS_WINDOW_MAX) return 0;
    let produced = 0;
    const decompress = new Decompress((chunk) => {
      const part = chunk.subarray(0, wanted - produced);
      output.bytes.set(part, start + produced);
      produced += part.length;
    });
    try {
      decompress.push(this.#input.bytes.subarray(0, this.#length));
    } catch {
      // What follows the stream is not zstd, or the stream is damaged: the count tells which.
    }
    return produced;
  }
}

/** The window of the frame at the start of `frame`, bytes. Source: RFC 8878, "Frame_Header". */
function windowSize(frame: DataView): number {
  if (frame.getUint32(0, true) !== ZSTD_MAGIC) return 0;
  const descriptor = frame.getUint8(4);
  const singleSegment = (descriptor & 0x20) !== 0;
  if (!singleSegment) {
    const window = frame.getUint8(5);
    const base = 2 ** (10 + (window >>> 3));
    return base + (base / 8) * (window & 7);
  }
  const sizeAt = 5 + ([0, 1, 2, 4][descriptor & 3] ?? 0);
  switch (descriptor >>> 6) {
    case 0:
      return frame.getUint8(sizeAt);
    case 1:
      return frame.getUint16(sizeAt, true) + 256;
    case 2:
      return frame.getUint32(sizeAt, true);
    default:
      return Number(frame.getBigUint64(sizeAt, true));
  }
}
