/** Sizes as qemu-img prints them. */

const UNITS = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/** `1.5 GiB`, `420 KiB`, `0 B`: three digits, the unit chosen so that the number is below 1000. */
export function sizeText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number(value.toPrecision(3))} ${UNITS[unit]}B`;
}
