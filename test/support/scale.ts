// Chooses between the quick form of a test run and the long one (TSIMGFS_TEST_LONG=1).

/** True in the long form. */
export const LONG: boolean = process.env["TSIMGFS_TEST_LONG"] === "1";

/** A count or a list that differs between the two forms. */
export function byScale<T>(quick: T, long: T): T {
  return LONG ? long : quick;
}
