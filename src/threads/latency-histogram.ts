/**
 * Latencies in buckets that get wider as they get longer, so that a few hundred counts tell percentiles from
 * microseconds to minutes. A time is counted in ticks of 1/8 microsecond: below 16 ticks each has a bucket of
 * its own, and above, each power of two is cut into 8 buckets, so that a bucket is at most 1/8 of its times wide.
 */

const TICKS_PER_MS = 8000;
const TICKS_PER_US = TICKS_PER_MS / 1000;
/** Above 268 s all times are alike. */
const TICKS_MAX = 0x7fff_ffff;
const LINEAR_TICKS = 16;
const LINEAR_BITS = 4;
const PARTS = 8;
const PART_BITS = 3;
const TICK_BITS = 31;

export const LATENCY_BUCKETS = LINEAR_TICKS + (TICK_BITS - LINEAR_BITS) * PARTS;

/** The bucket of a time in milliseconds, not negative. */
export function bucketOf(ms: number): number {
  const ticks = Math.min(ms * TICKS_PER_MS, TICKS_MAX) | 0;
  if (ticks < LINEAR_TICKS) return ticks;
  const exponent = 31 - Math.clz32(ticks);
  const part = (ticks >>> (exponent - PART_BITS)) & (PARTS - 1);
  return LINEAR_TICKS + (exponent - LINEAR_BITS) * PARTS + part;
}

/** Where the times of a bucket start, microseconds; those of the one before end there. */
export function bucketStart(bucket: number): number {
  if (bucket < LINEAR_TICKS) return bucket / TICKS_PER_US;
  const index = bucket - LINEAR_TICKS;
  const exponent = LINEAR_BITS + Math.floor(index / PARTS);
  return ((PARTS + (index % PARTS)) * 2 ** (exponent - PART_BITS)) / TICKS_PER_US;
}

/**
 * The time in microseconds that a share of all latencies is not above: as exact as the width of a bucket.
 *
 * @param buckets how many there are in each of `LATENCY_BUCKETS`
 * @param share 0 < share <= 1
 * @returns 0 if there are none
 */
export function quantile(buckets: ArrayLike<number>, share: number): number {
  let total = 0;
  for (let bucket = 0; bucket < buckets.length; bucket++) total += buckets[bucket] ?? 0;
  const wanted = total * share;
  let below = 0;
  for (let bucket = 0; bucket < buckets.length; bucket++) {
    const count = buckets[bucket] ?? 0;
    if (count > 0 && below + count >= wanted) {
      const start = bucketStart(bucket);
      // As if they were spread evenly over the bucket.
      return start + ((bucketStart(bucket + 1) - start) * (wanted - below)) / count;
    }
    below += count;
  }
  return 0;
}
