/** Raw deflate streams, as QEMU writes them. Source: qcow2 specification, "Compressed clusters". */

import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { lazyModules } from "../lazy-modules.ts";
import type { ClusterEncoder } from "./cluster-encoder.ts";

/** A window of 2^12: QEMU's decoder has no larger one. QEMU's encoder takes the same memory. */
const PARAMETERS = { windowBits: 12, memLevel: 9 } as const;

export class Deflater implements ClusterEncoder {
  encode(
    source: NativeBuffer,
    start: number,
    length: number,
    target: NativeBuffer,
    targetStart: number,
    capacity: number,
  ): number {
    const stream = lazyModules.zlib.deflateRawSync(
      source.bytes.subarray(start, start + length),
      PARAMETERS,
    );
    if (stream.length > capacity) return 0;
    target.bytes.set(stream, targetStart);
    return stream.length;
  }
}
