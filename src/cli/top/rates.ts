/** What devices do: the difference of two samples of their counters. */

import { LATENCY_BUCKETS, quantile } from "../../threads/latency-histogram.ts";
import type { CounterSample, OperationSample } from "../../tree/io-fields.ts";
import type { StreamStats } from "../../tree/stream-control.ts";

/** One operation. Latencies in microseconds; 0: there were no requests. */
export interface OperationRates {
  readonly "requests-per-second": number;
  readonly "bytes-per-second": number;
  /** Since the sample before. */
  readonly errors: number;
  readonly "latency-us": { readonly p50: number; readonly p99: number };
}

export interface DeviceRates {
  readonly operations: Readonly<Record<string, OperationRates>>;
  readonly "copied-clusters-per-second": number;
  /** Clusters that could not be stored, since the sample before. */
  readonly "copies-failed": number;
  /** Of look-ups of tables; 1 without any. */
  readonly "table-cache-hit-ratio": number;
  readonly stream?: StreamStats | undefined;
}

const NO_OPERATION: OperationSample = { requests: 0, bytes: 0, errors: 0, latencies: [] };

/** @param seconds between the samples, > 0 */
export function ratesOf(before: CounterSample, now: CounterSample, seconds: number): DeviceRates {
  const events = (name: keyof CounterSample["events"]): number =>
    (now.events[name] ?? 0) - (before.events[name] ?? 0);
  const hits = events("table-cache-hits");
  const lookups = hits + events("table-cache-misses");
  const earlier: Readonly<Record<string, OperationSample>> = before.operations;
  const operations = Object.entries(now.operations).map(([name, sample]) => [
    name,
    operationRates(earlier[name] ?? NO_OPERATION, sample, seconds),
  ]);
  return {
    operations: Object.fromEntries(operations),
    "copied-clusters-per-second":
      (events("copy-on-read-stored") + events("copy-on-read-zero")) / seconds,
    "copies-failed": events("copy-on-read-failed"),
    "table-cache-hit-ratio": lookups === 0 ? 1 : hits / lookups,
    stream: now.stream,
  };
}

function operationRates(
  before: OperationSample,
  now: OperationSample,
  seconds: number,
): OperationRates {
  const buckets = new Float64Array(LATENCY_BUCKETS);
  for (const [bucket, count] of now.latencies) buckets[bucket] = count;
  for (const [bucket, count] of before.latencies) buckets[bucket] = (buckets[bucket] ?? 0) - count;
  return {
    "requests-per-second": (now.requests - before.requests) / seconds,
    "bytes-per-second": (now.bytes - before.bytes) / seconds,
    errors: now.errors - before.errors,
    "latency-us": { p50: quantile(buckets, 0.5), p99: quantile(buckets, 0.99) },
  };
}
