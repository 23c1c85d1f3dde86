/** Latencies in buckets: against the times themselves. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  bucketOf,
  bucketStart,
  LATENCY_BUCKETS,
  quantile,
} from "../../../src/threads/latency-histogram.ts";

/** Milliseconds: from nothing to minutes, as often short as long. */
const latency = fc
  .tuple(fc.integer({ min: -4, max: 5 }), fc.double({ min: 1, max: 10, noNaN: true }))
  .map(([exponent, factor]) => (exponent === -4 ? 0 : factor * 10 ** exponent))
  .filter((ms) => ms < 268_000);

describe("a bucket", () => {
  it("is one of those that there are, and holds the time", () => {
    fc.assert(
      fc.property(latency, (ms) => {
        const bucket = bucketOf(ms);
        expect(bucket).toBeGreaterThanOrEqual(0);
        expect(bucket).toBeLessThan(LATENCY_BUCKETS);
        const [start, end] = [bucketStart(bucket), bucketStart(bucket + 1)];
        expect(start).toBeLessThanOrEqual(ms * 1000);
        expect(end).toBeGreaterThan(ms * 1000);
        // An eighth of a microsecond, or of the time.
        expect(end - start).toBeLessThanOrEqual(Math.max(0.125, start / 8));
      }),
    );
  });

  it("starts where the one before ends", () => {
    expect(bucketStart(0)).toBe(0);
    for (let bucket = 0; bucket < LATENCY_BUCKETS; bucket++) {
      expect(bucketOf(bucketStart(bucket) / 1000)).toBe(bucket);
    }
  });

  it.each([268_435.456, 1e9, Number.MAX_VALUE, Number.POSITIVE_INFINITY])(
    "is the last one for %d ms",
    (ms) => expect(bucketOf(ms)).toBe(LATENCY_BUCKETS - 1),
  );
});

describe("a percentile", () => {
  it("is that of the sorted times, as exact as a bucket is wide", () => {
    fc.assert(
      fc.property(
        fc.array(latency, { minLength: 1, maxLength: 200 }),
        fc.constantFrom(0.01, 0.5, 0.9, 0.99, 1),
        (times, share) => {
          const buckets = new Float64Array(LATENCY_BUCKETS);
          for (const ms of times) {
            const bucket = bucketOf(ms);
            buckets[bucket] = (buckets[bucket] ?? 0) + 1;
          }
          const sorted = times.toSorted((a, b) => a - b);
          const exact = (sorted[Math.ceil(share * times.length) - 1] ?? 0) * 1000;
          const found = quantile(buckets, share);
          expect(Math.abs(found - exact)).toBeLessThanOrEqual(Math.max(0.125, exact / 8));
        },
      ),
    );
  });

  it("is 0 where nothing was counted", () => {
    expect(quantile(new Float64Array(LATENCY_BUCKETS), 0.99)).toBe(0);
  });
});
