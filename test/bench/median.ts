/** The middle, the least and the greatest of a cell's samples. */

export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/**
 * Undefined for no samples. The median of an even number of samples is the mean of the two in the
 * middle.
 */
export function summarize(samples: readonly number[]): Summary | undefined {
  const sorted = [...samples].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle];
  const lower = sorted.length % 2 === 0 ? sorted[middle - 1] : upper;
  const min = sorted[0];
  const max = sorted[sorted.length - 1];
  if (upper === undefined || lower === undefined || min === undefined || max === undefined) {
    return undefined;
  }
  return { median: (lower + upper) / 2, min, max };
}
