/** Latencies for people. */

/** `5.0us`, `850us`, `1.5ms`, `2.1s`. */
export function latencyText(us: number): string {
  if (us < 1000) return `${us.toFixed(us < 10 ? 1 : 0)}us`;
  return us < 1e6 ? `${(us / 1000).toFixed(1)}ms` : `${(us / 1e6).toFixed(1)}s`;
}
