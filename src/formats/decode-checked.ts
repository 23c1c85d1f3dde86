/** Decoding structures of image files, where a number that is too large is the file's fault. */

import {
  type Decoded,
  decode,
  type Endianness,
  type Field,
  UnsafeIntegerError,
} from "../binary/struct.ts";
import { FormatError, hex } from "../errors.ts";

/** Where a structure is: in memory, and in the file that error messages name. */
export interface StructPlace {
  readonly path: string;
  /** Byte offset in the file. */
  readonly fileOffset: number;
  /** Index in the bytes. */
  readonly start?: number;
  /** Bytes that exist; fields that reach past it read as 0. */
  readonly length?: number;
  /** Named before the field in messages. */
  readonly what?: string;
}

/**
 * As `decode`.
 *
 * @throws {FormatError} a 64-bit number is above 2^53 - 1
 */
export function decodeChecked<const T extends readonly Field[]>(
  fields: T,
  bytes: Uint8Array,
  endianness: Endianness,
  { path, fileOffset, start, length, what }: StructPlace,
): Decoded<T> {
  try {
    return decode(fields, bytes, endianness, start, length);
  } catch (error) {
    if (!(error instanceof UnsafeIntegerError)) throw error;
    const field = what === undefined ? error.field : `${what}: ${error.field}`;
    const reason = `${field} ${hex(error.value)} is above the limit of 2^53 - 1`;
    throw new FormatError(path, reason, { offset: fileOffset });
  }
}
