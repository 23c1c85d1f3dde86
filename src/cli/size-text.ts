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
  return `${threeDigits(value)} ${UNITS[unit]}B`;
}

/** As C's %.3g for 0 <= value < 1000: a tie goes to the even digit, where toPrecision rounds up. */
function threeDigits(value: number): number {
  const scale = [1000, 100, 10][[1, 10, 100].findIndex((limit) => value < limit)] ?? 1;
  const scaled = value * scale;
  const floor = Math.floor(scaled);
  const isTie = scaled - floor === 0.5;
  return (isTie && floor % 2 === 0 ? floor : Math.round(scaled)) / scale;
}
