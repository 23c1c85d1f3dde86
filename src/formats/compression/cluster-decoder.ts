/** What reads a compressed cluster: begin with its stream, then take the bytes in order. */

import type { NativeBuffer } from "../../syscalls/native-buffer.ts";

export interface ClusterDecoder {
  /** False: a cluster can only be had whole, by one `produce` of all its bytes. */
  readonly partial: boolean;
  /**
   * Start with a new stream. What follows it in `input` is ignored.
   *
   * @param input stays untouched until the last `produce`
   * @param length bytes of `input` that may belong to the stream
   */
  begin(input: NativeBuffer, length: number): void;
  /**
   * Write the next bytes of the cluster to `output.bytes[start]` on.
   *
   * @returns bytes written; less than `wanted` if the stream ended or is damaged
   */
  produce(output: NativeBuffer, start: number, wanted: number): number;
}
