/** The counters of a device in the names of their JSON: for NAME.stats.json, and for who samples them. */

import {
  countsByThread,
  type DeviceCounts,
  OPERATIONS,
  type OperationCounts,
  type OperationName,
  sumCounts,
} from "../threads/counters.ts";
import { quantile } from "../threads/latency-histogram.ts";
import type { StreamStats } from "./stream-control.ts";

/** Of which device the counters are. */
export interface DevicePlace {
  readonly device: number;
  readonly devices: number;
}

/** Latencies in microseconds. */
interface OperationFields {
  readonly requests: number;
  readonly bytes: number;
  readonly errors: number;
  readonly "latency-us": {
    readonly mean: number;
    readonly p50: number;
    readonly p99: number;
    readonly max: number;
  };
}

type EventFields = DeviceCounts["events"];

interface CountFields extends EventFields {
  readonly operations: Readonly<Record<string, OperationFields>>;
}

/** Since the mount; snapshots are counted with their image. */
export interface IoFields extends CountFields {
  /** Of each thread; of operations, those that it was asked for. */
  readonly threads: readonly (CountFields & { readonly thread: number; readonly role: string })[];
}

/** The field `io` of NAME.stats.json. */
export function ioFields(memory: SharedArrayBuffer, place: DevicePlace): IoFields {
  const threads = countsByThread(memory, place);
  return {
    ...countFields(sumCounts(memory, place), () => true),
    threads: threads.map((counts, thread) => ({
      thread,
      role: thread === threads.length - 1 ? "upkeep" : "io",
      ...countFields(counts, ({ requests }) => requests > 0),
    })),
  };
}

function countFields(
  { events, operations }: DeviceCounts,
  isShown: (operation: OperationCounts) => boolean,
): CountFields {
  const shown = OPERATIONS.filter((name) => isShown(operations[name]));
  return {
    ...events,
    operations: Object.fromEntries(shown.map((name) => [name, operationFields(operations[name])])),
  };
}

function operationFields(counts: OperationCounts): OperationFields {
  const { requests, bytes, errors, totalMs, maxMs, buckets } = counts;
  const max = maxMs * 1000;
  // The longest may be shorter than its bucket is wide.
  const percentile = (share: number): number => Math.min(quantile(buckets, share), max);
  const mean = requests === 0 ? 0 : (totalMs * 1000) / requests;
  const latency = { mean, p50: percentile(0.5), p99: percentile(0.99), max };
  return { requests, bytes, errors, "latency-us": rounded(latency) };
}

function rounded<T extends Readonly<Record<string, number>>>(fields: T): T {
  const pairs = Object.entries(fields).map(([name, us]) => [name, Math.round(us * 10) / 10]);
  // The same names.
  return Object.fromEntries(pairs) as T;
}

/** The attribute of a device that has its `CounterSample` as JSON. */
export const COUNTERS_XATTR = "user.tsimgfs.counters";

/** One operation as who samples the counters sees it. */
export interface OperationSample {
  readonly requests: number;
  readonly bytes: number;
  readonly errors: number;
  /** Pairs: a bucket of latency-histogram.ts, and how many requests are in it. */
  readonly latencies: readonly (readonly [bucket: number, count: number])[];
}

/** What a device has done since its mount: two of these tell what it does in between. */
export interface CounterSample {
  readonly operations: Readonly<Record<OperationName, OperationSample>>;
  readonly events: EventFields;
  readonly stream: StreamStats | undefined;
}

/** The counters of a device now, which costs next to nothing. */
export function counterSample(
  memory: SharedArrayBuffer,
  place: DevicePlace,
  stream: StreamStats | undefined,
): CounterSample {
  const { events, operations } = sumCounts(memory, place);
  const samples = OPERATIONS.map((name) => [name, operationSample(operations[name])]);
  // One pair for each name.
  return { operations: Object.fromEntries(samples) as CounterSample["operations"], events, stream };
}

function operationSample({ requests, bytes, errors, buckets }: OperationCounts): OperationSample {
  const latencies: [number, number][] = [];
  buckets.forEach((inBucket, bucket) => {
    if (inBucket > 0) latencies.push([bucket, inBucket]);
  });
  return { requests, bytes, errors, latencies };
}
