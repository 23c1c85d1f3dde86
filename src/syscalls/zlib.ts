/** The inflate half of zlib: Node exports the one that it is built with. Source: zlib.h. */

import { findLibrary } from "./shared-library.ts";

/** `z_stream` where pointers and longs have 64 bits; offsets in bytes. */
export const Z_STREAM = {
  nextIn: 0,
  availIn: 8,
  nextOut: 24,
  availOut: 32,
  size: 112,
} as const;

export const Z_SYNC_FLUSH = 2;
export const Z_OK = 0;
export const Z_STREAM_END = 1;
export const Z_BUF_ERROR = -5;

export interface ZlibFunctions {
  /** int inflateInit2_(z_stream *stream, int windowBits, const char *version, int stream_size) */
  inflateInit2(stream: number, windowBits: number, version: string, size: number): number;
  /** int inflateReset(z_stream *stream) */
  inflateReset(stream: number): number;
  /** int inflate(z_stream *stream, int flush) */
  inflate(stream: number, flush: number): number;
  /** const char *zlibVersion(void) */
  zlibVersion(): string;
}

/** The functions, or undefined if neither this process nor the system has them. */
export function loadZlib(): ZlibFunctions | undefined {
  const found = findLibrary(
    [
      { library: undefined, prefix: "" },
      // Official builds of Node rename the zlib of Chromium.
      { library: undefined, prefix: "Cr_z_" },
      { library: "libz.so.1", prefix: "" },
    ],
    "inflateInit2_",
  );
  if (found === undefined) return undefined;
  const { library, prefix } = found;
  return {
    inflateInit2: library.func(
      `int ${prefix}inflateInit2_(uintptr_t stream, int windowBits, const char *version, int size)`,
    ),
    inflateReset: library.func(`int ${prefix}inflateReset(uintptr_t stream)`),
    inflate: library.func(`int ${prefix}inflate(uintptr_t stream, int flush)`),
    zlibVersion: library.func(`const char *${prefix}zlibVersion()`),
  };
}
