/** Sets of the 32 sub-clusters of a cluster. Source: qcow2 specification, "Extended L2 Entries". */

/** Sub-clusters of a cluster with an extended entry. */
export const SUBCLUSTERS = 32;
/** All of them, as bits. */
export const ALL_SUBCLUSTERS = 0xffff_ffff;

export function hasBit(bits: number, index: number): boolean {
  return ((bits >>> index) & 1) !== 0;
}

/** Bits `from` up to `to`, 0 <= from < to <= 32. */
export function bitRange(from: number, to: number): number {
  const below = to === SUBCLUSTERS ? ALL_SUBCLUSTERS : 2 ** to - 1;
  return (below & ~(2 ** from - 1)) >>> 0;
}
