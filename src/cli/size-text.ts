/** Sizes as qemu-img prints them. */

import { decimals } from "./decimals.ts";

const UNITS = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/** `1.5 GiB`, `420 KiB`, `0 B`: three digits, the unit chosen so that the number is below 1000. */
export function sizeText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${threeDigits(value)} ${UNITS[unit]}B`;
}

/** As C's %.3g for 0 <= value < 1000. */
function threeDigits(value: number): number {
  const digits = [100, 10, 1].findIndex((limit) => value >= limit);
  return Number(decimals(value, digits < 0 ? 3 : digits));
}
