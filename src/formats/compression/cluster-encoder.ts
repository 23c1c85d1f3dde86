/** What compresses a cluster: the other direction of ClusterDecoder. */

import type { NativeBuffer } from "../../syscalls/native-buffer.ts";

export interface ClusterEncoder {
  /**
   * Compress `length` bytes from `source.bytes[start]` on into `target.bytes[targetStart]` on.
   *
   * @param capacity bytes that the stream may take
   * @returns bytes of the stream; 0: it would take more
   * @throws {UnsupportedError} a library is missing
   */
  encode(
    source: NativeBuffer,
    start: number,
    length: number,
    target: NativeBuffer,
    targetStart: number,
    capacity: number,
  ): number;
}
