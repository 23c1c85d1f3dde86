/** Numbers as C prints them. */

/**
 * As C's `%.*f`: a tie goes to the even digit, where toFixed rounds up.
 *
 * @param value >= 0
 * @param digits behind the point
 */
export function decimals(value: number, digits: number): string {
  // (2k + 1) / (2 * 10^digits) is a binary fraction only if it is an odd number of these.
  const isTie = (value * 2 ** (digits + 1)) % 2 === 1;
  const scale = 10 ** digits;
  const floor = Math.floor(value * scale);
  return (isTie && floor % 2 === 0 ? floor / scale : value).toFixed(digits);
}
