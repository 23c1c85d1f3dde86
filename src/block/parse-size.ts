/** Sizes as people write them. */

import { UsageError } from "../errors.ts";

/**
 * A size as qemu-img takes it, in bytes: a number of them, or a number with a suffix of a power of 1024, which
 * may have a fraction; rounded down to whole bytes. Undefined if it is none.
 */
export function parseBytes(text: string): bigint | undefined {
  const hexadecimal = /^\s*\+?(0[xX][\da-fA-F]+)$/.exec(text);
  if (hexadecimal !== null) return BigInt(hexadecimal[1] ?? "");
  const match = /^\s*\+?(\d+)(?:\.(\d*))?([bkmgtpe]?)$/i.exec(text);
  if (match === null) return undefined;
  const [, whole = "", fraction = "", suffix = ""] = match;
  const unit = 1024 ** "bkmgtpe".indexOf(suffix.toLowerCase() || "b");
  const part = Number(`0.${fraction}0`);
  if (unit === 1 && part !== 0) return undefined;
  return BigInt(whole) * BigInt(unit) + BigInt(Math.floor(part * unit));
}

/**
 * As `parseBytes`, of sizes that a number says exactly. A disk is at most a sector smaller than that.
 *
 * @param subject whose size it is: an option or a file
 * @throws {UsageError} it is above that
 */
export function parseSize(subject: string, text: string): number | undefined {
  const bytes = parseBytes(text);
  if (bytes === undefined) return undefined;
  if (bytes <= Number.MAX_SAFE_INTEGER) return Number(bytes);
  throw new UsageError(subject, `${text} is above the limit of 2^53 - 512 bytes`);
}
