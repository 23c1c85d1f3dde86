/** Sizes as people write them. */

/**
 * A size as qemu-img takes it: bytes, or a number with a suffix of a power of 1024, which may have a
 * fraction; rounded down to whole bytes. Undefined if it is none; above 2^53 it is rounded.
 */
export function parseSize(text: string): number | undefined {
  const hexadecimal = /^\s*\+?(0[xX][\da-fA-F]+)$/.exec(text);
  if (hexadecimal !== null) return Number(hexadecimal[1]);
  const match = /^\s*\+?(\d+)(?:\.(\d*))?([bkmgtpe]?)$/i.exec(text);
  if (match === null) return undefined;
  const [, whole = "", fraction = "", suffix = ""] = match;
  const unit = 1024 ** "bkmgtpe".indexOf(suffix.toLowerCase() || "b");
  const part = Number(`0.${fraction}0`);
  if (unit === 1 && part !== 0) return undefined;
  return Number(whole) * unit + Math.floor(part * unit);
}
