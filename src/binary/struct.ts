/** Structures on disk and on the wire as one table each: offsets, decoding and encoding come from it. */

import assert from "node:assert";

/** `u64` and `i64` must fit a safe integer; `mask64` is a bit set. */
export type FieldType = "u8" | "u16" | "u32" | "i32" | "u64" | "i64" | "mask64";

/** One row: name, byte offset, type, meaning. */
export type Field = readonly [name: string, offset: number, type: FieldType, doc: string];

/** A decoded struct: one number per field, one bigint per `mask64`. */
export type Decoded<T extends readonly Field[]> = {
  readonly [F in T[number] as F[0]]: F[2] extends "mask64" ? bigint : number;
};

export type Endianness = "le" | "be";

const SIZES: Record<FieldType, number> = {
  u8: 1,
  u16: 2,
  u32: 4,
  i32: 4,
  u64: 8,
  i64: 8,
  mask64: 8,
};

/** A 64-bit field whose value no Number holds exactly. */
export class UnsafeIntegerError extends Error {
  override readonly name = "UnsafeIntegerError";
  readonly field: string;
  readonly value: bigint;
  constructor(field: string, value: bigint) {
    super(`${field} ${value} is above 2^53 - 1`);
    this.field = field;
    this.value = value;
  }
}

function fieldOf(fields: readonly Field[], name: string): Field {
  const field = fields.find(([fieldName]) => fieldName === name);
  assert(field !== undefined, name);
  return field;
}

/** Byte offset of a field: for error messages and for constants of hot code. */
export function offsetOf<const T extends readonly Field[]>(fields: T, name: T[number][0]): number {
  return fieldOf(fields, name)[1];
}

/** Bytes up to and including the field `name`; without a name, of the whole struct. */
export function sizeOf<const T extends readonly Field[]>(fields: T, name?: T[number][0]): number {
  if (name !== undefined) {
    const [, offset, type] = fieldOf(fields, name);
    return offset + SIZES[type];
  }
  return fields.reduce((size, [, offset, type]) => Math.max(size, offset + SIZES[type]), 0);
}

function readField(
  view: DataView,
  [name, offset, type]: Field,
  base: number,
  little: boolean,
): number | bigint {
  const at = base + offset;
  switch (type) {
    case "u8":
      return view.getUint8(at);
    case "u16":
      return view.getUint16(at, little);
    case "u32":
      return view.getUint32(at, little);
    case "i32":
      return view.getInt32(at, little);
    case "mask64":
      return view.getBigUint64(at, little);
    case "u64":
    case "i64": {
      const value = type === "u64" ? view.getBigUint64(at, little) : view.getBigInt64(at, little);
      const number = Number(value);
      if (!Number.isSafeInteger(number)) throw new UnsafeIntegerError(name, value);
      return number;
    }
  }
}

/**
 * Read every field of a struct that starts at `start` of `bytes`.
 *
 * @param length bytes of the struct that exist; fields that reach past it read as 0. Default: all
 * @throws {UnsafeIntegerError} a `u64` or `i64` is outside the safe integers
 */
export function decode<const T extends readonly Field[]>(
  fields: T,
  bytes: Uint8Array,
  endianness: Endianness,
  start = 0,
  length = bytes.length - start,
): Decoded<T> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = endianness === "le";
  const values: Record<string, number | bigint> = {};
  for (const field of fields) {
    const [name, offset, type] = field;
    const exists = offset + SIZES[type] <= length;
    values[name] = exists ? readField(view, field, start, little) : type === "mask64" ? 0n : 0;
  }
  // The loop above set one value of the right kind for each row of the table.
  return values as Decoded<T>;
}

/**
 * Write the fields that `values` names, at `start` of `bytes`; others stay as they are.
 * Numbers for `u64` fields are safe integers, >= 0.
 */
export function encode<const T extends readonly Field[]>(
  fields: T,
  values: Readonly<Partial<Record<T[number][0], number | bigint>>>,
  bytes: Uint8Array,
  endianness: Endianness,
  start = 0,
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = endianness === "le";
  const byName: Readonly<Record<string, number | bigint | undefined>> = values;
  for (const [name, offset, type] of fields) {
    const value = byName[name];
    if (value === undefined) continue;
    const at = start + offset;
    switch (type) {
      case "u8":
        view.setUint8(at, Number(value));
        break;
      case "u16":
        view.setUint16(at, Number(value), little);
        break;
      case "u32":
      case "i32":
        view.setUint32(at, Number(value), little);
        break;
      case "u64":
      case "i64":
      case "mask64":
        view.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), little);
        break;
    }
  }
}
