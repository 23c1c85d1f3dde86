/** How many clusters are reserved ahead at once (native-notes/writing.md): each time costs a wait for the disk. */

/** Reservations grow with what was taken, within these limits, bytes. */
const RESERVATION_MIN = 16 * 1024 * 1024;
const RESERVATION_MAX = 1024 * 1024 * 1024;
/** And are at least this many clusters, however little the disk can still need. */
const RESERVATION_CLUSTERS_MIN = 16;

/**
 * Clusters of the next reservation: as many as were taken so far, not more than the disk can still need.
 *
 * @param clusterSize bytes
 * @param taken clusters that this session has taken
 * @param needed clusters that would complete the disk; less than 0: more than that are in use
 */
export function reservationSize(clusterSize: number, taken: number, needed: number): number {
  const grown = Math.max(RESERVATION_MIN / clusterSize, taken);
  const useful = Math.max(needed, RESERVATION_CLUSTERS_MIN);
  return Math.ceil(Math.min(grown, RESERVATION_MAX / clusterSize, useful));
}
