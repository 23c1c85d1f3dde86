/** Numbers as qemu-io reads them: sizes with suffixes, and the integers of C. */

import { IoFailure } from "./failure.ts";

/** What C's functions skip before a number. */
const SPACE = "[\\t\\n\\v\\f\\r ]*";
const DECIMAL = new RegExp(`^${SPACE}\\+?(\\d+)(?:\\.(\\d*))?([bkmgtpe]?)$`, "i");
/** After hexadecimal digits, b and e are digits. */
const HEXADECIMAL = new RegExp(`^${SPACE}\\+?0x([\\da-f]+)([kmgtp]?)$`, "i");
const INTEGER = new RegExp(`^${SPACE}([+-]?)(0x[\\da-f]+|0[0-7]*|[1-9]\\d*)$`, "i");

const SUFFIXES = "bkmgtpe";
const INT64_MAX = 2n ** 63n - 1n;
/** Fractions are taken with this many bits. */
const FRACTION_BITS = 64n;

/** The factor of a suffix as a power of two; none: bytes. */
function shiftOf(suffix: string): bigint {
  return suffix === "" ? 0n : BigInt(SUFFIXES.indexOf(suffix.toLowerCase()) * 10);
}

function parseBytes(text: string): bigint | undefined {
  const hexadecimal = HEXADECIMAL.exec(text);
  if (hexadecimal !== null) {
    const [, digits = "", suffix = ""] = hexadecimal;
    return BigInt(`0x${digits}`) << shiftOf(suffix);
  }
  const decimal = DECIMAL.exec(text);
  if (decimal === null) return undefined;
  const [, digits = "", fractionDigits = "", suffix = ""] = decimal;
  const shift = shiftOf(suffix);
  const fraction = BigInt(Math.floor(Number(`0.${fractionDigits || "0"}`) * 2 ** 64));
  // A part of a byte needs a unit that it is a part of.
  if (shift === 0n && fraction !== 0n) return undefined;
  const half = 1n << (FRACTION_BITS - 1n);
  return (BigInt(digits) << shift) + (((fraction << shift) + half) >> FRACTION_BITS);
}

/**
 * A size or an offset: decimal with an optional fraction and suffix (k, M, G, T, P, E; also small and
 * capital), or hexadecimal. Above 2^53 it is the nearest number, which lies beyond every disk all the same.
 *
 * @throws {IoFailure} it is none, or above 2^63 - 1
 */
export function parseSize(text: string): number {
  const bytes = parseBytes(text);
  if (bytes === undefined) {
    const reason = "non-numeric argument, or extraneous/unrecognized suffix";
    throw new IoFailure({ output: `Parsing error: ${reason} -- ${text}` });
  }
  if (bytes > INT64_MAX) {
    throw new IoFailure({ output: `Parsing error: argument too large -- ${text}` });
  }
  return Number(bytes);
}

/** An integer in the bases of C: 10, 0x10, 010; undefined: it is none. */
export function parseInteger(text: string): number | undefined {
  const match = INTEGER.exec(text);
  if (match === null) return undefined;
  const [, sign, digits = ""] = match;
  const isOctal = /^0[0-7]+$/.test(digits);
  const value = isOctal ? Number.parseInt(digits, 8) : Number(digits);
  return sign === "-" ? -value : value;
}

/**
 * The byte that `-P` states.
 *
 * @throws {IoFailure} it is none
 */
export function parsePattern(text: string): number {
  const value = parseInteger(text);
  if (value === undefined || value < 0 || value > 0xff) {
    throw new IoFailure({ output: `${text} is not a valid pattern byte` });
  }
  return value;
}
