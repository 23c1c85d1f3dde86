/** libzstd, its decoder and its encoder: newer versions of Node export it, most systems have it. Source: zstd.h. */

import { findLibrary } from "./shared-library.ts";

export interface ZstdFunctions {
  /** ZSTD_DCtx *ZSTD_createDCtx(void); 0: out of memory */
  createContext(): number;
  /** size_t ZSTD_findFrameCompressedSize(const void *source, size_t size) */
  findFrameCompressedSize(source: number, size: number): number;
  /** size_t ZSTD_decompressDCtx(ZSTD_DCtx *context, void *target, size_t capacity, const void *source, size_t size) */
  decompress(
    context: number,
    target: number,
    capacity: number,
    source: number,
    size: number,
  ): number;
  /** unsigned ZSTD_isError(size_t result) */
  isError(result: number): number;
}

export interface ZstdEncoderFunctions {
  /** ZSTD_CCtx *ZSTD_createCCtx(void); 0: out of memory */
  createContext(): number;
  /** size_t ZSTD_compressCCtx(ZSTD_CCtx *context, void *target, size_t capacity, const void *source, size_t size, int level) */
  compress(
    context: number,
    target: number,
    capacity: number,
    source: number,
    size: number,
    level: number,
  ): number;
  /** unsigned ZSTD_isError(size_t result) */
  isError(result: number): number;
}

const PLACES = [
  { library: undefined, prefix: "" },
  { library: "libzstd.so.1", prefix: "" },
];

/** The functions, or undefined if neither this process nor the system has them. */
export function loadZstd(): ZstdFunctions | undefined {
  const found = findLibrary(PLACES, "ZSTD_decompressDCtx");
  if (found === undefined) return undefined;
  const { library } = found;
  // Results are int64: errors are the highest values of size_t, which become small negative numbers.
  return {
    createContext: library.func("uintptr_t ZSTD_createDCtx()"),
    findFrameCompressedSize: library.func(
      "int64_t ZSTD_findFrameCompressedSize(uintptr_t source, size_t size)",
    ),
    decompress: library.func(
      "int64_t ZSTD_decompressDCtx(uintptr_t context, uintptr_t target, size_t capacity, uintptr_t source, size_t size)",
    ),
    isError: library.func("unsigned int ZSTD_isError(int64_t result)"),
  };
}

/** As `loadZstd`. */
export function loadZstdEncoder(): ZstdEncoderFunctions | undefined {
  const found = findLibrary(PLACES, "ZSTD_compressCCtx");
  if (found === undefined) return undefined;
  const { library } = found;
  return {
    createContext: library.func("uintptr_t ZSTD_createCCtx()"),
    compress: library.func(
      "int64_t ZSTD_compressCCtx(uintptr_t context, uintptr_t target, size_t capacity, uintptr_t source, size_t size, int level)",
    ),
    isError: library.func("unsigned int ZSTD_isError(int64_t result)"),
  };
}
