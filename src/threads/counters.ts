/**
 * What each thread has done for each device, counted in shared memory. A thread writes only its own numbers,
 * with plain stores; whoever shows them adds them up. A sum may lag by the requests under way.
 *
 * One thread and device, in doubles:
 *
 *     0                   one for each of COUNTERS
 *     16 + 240 o          of operation o: requests | bytes | errors | ms in all | ms at most
 *     21 + 240 o          its latencies: one for each of LATENCY_BUCKETS
 */

import { bucketOf, LATENCY_BUCKETS } from "./latency-histogram.ts";

/** What is counted apart from requests. */
export const COUNTERS = [
  "opens",
  "copy-on-read-stored",
  "copy-on-read-zero",
  "copy-on-read-failed",
  "zero-clusters-detected",
  "zero-bytes-detected",
  "punched-bytes",
  "table-cache-hits",
  "table-cache-misses",
] as const;
export type CounterName = (typeof COUNTERS)[number];

/** Index of each counter among those of a thread and device. */
export const COUNTER = {
  opens: 0,
  /** Clusters that were copied from backing files, by reads and by streaming. */
  copyOnReadStored: 1,
  /** Clusters that became zero clusters. */
  copyOnReadZero: 2,
  /** Clusters that could not be stored. */
  copyOnReadFailed: 3,
  /** Clusters, whole or in part, of zeros that were written and took no data. */
  zeroClustersDetected: 4,
  zeroBytesDetected: 5,
  /** Bytes of files in which holes were punched. */
  punchedBytes: 6,
  tableCacheHits: 7,
  tableCacheMisses: 8,
} as const;

/** What a device is asked to do. */
export const OPERATIONS = [
  "read",
  "write",
  "zero",
  "discard",
  "allocate",
  "flush",
  "seek",
] as const;
export type OperationName = (typeof OPERATIONS)[number];

/** Index of each operation. */
export const OPERATION = {
  read: 0,
  write: 1,
  /** fallocate with ZERO_RANGE. */
  zero: 2,
  /** fallocate with PUNCH_HOLE. */
  discard: 3,
  /** fallocate without a mode. */
  allocate: 4,
  /** fsync, and writes that are to be durable. */
  flush: 5,
  /** lseek with SEEK_DATA or SEEK_HOLE. */
  seek: 6,
} as const;

const FIRST_OPERATION = 16;
const OPERATION_STRIDE = 240;
const REQUESTS = 0;
const BYTES = 1;
const ERRORS = 2;
const TOTAL_MS = 3;
const MAX_MS = 4;
const BUCKETS = 5;

/** Counters of one thread and device: whole cache lines, which keeps threads apart. */
const STRIDE = FIRST_OPERATION + OPERATIONS.length * OPERATION_STRIDE;

/** Memory for the counters of all threads and devices. */
export function createCounters(threads: number, devices: number): SharedArrayBuffer {
  return new SharedArrayBuffer(threads * devices * STRIDE * Float64Array.BYTES_PER_ELEMENT);
}

/** Counters that nobody asks for. */
export function privateCounters(): Float64Array {
  return new Float64Array(COUNTERS.length);
}

/** The counters of one thread for one device; write them only in that thread. */
export function threadCounters(
  memory: SharedArrayBuffer,
  { thread, device, devices }: { thread: number; device: number; devices: number },
): Float64Array {
  const index = (thread * devices + device) * STRIDE;
  return new Float64Array(memory, index * Float64Array.BYTES_PER_ELEMENT, STRIDE);
}

/** Add to one of a thread's counters. */
export function count(counters: Float64Array, counter: number, amount: number): void {
  counters[counter] = (counters[counter] ?? 0) + amount;
}

/**
 * Count a request that was served.
 *
 * @param startedAt by performance.now()
 */
export function countRequest(
  counters: Float64Array,
  operation: number,
  startedAt: number,
  bytes: number,
): void {
  const base = FIRST_OPERATION + operation * OPERATION_STRIDE;
  counters[base + BYTES] = (counters[base + BYTES] ?? 0) + bytes;
  countLatency(counters, base, performance.now() - startedAt);
}

/** As `countRequest`, of a request that failed. */
export function countError(counters: Float64Array, operation: number, startedAt: number): void {
  const base = FIRST_OPERATION + operation * OPERATION_STRIDE;
  count(counters, base + ERRORS, 1);
  countLatency(counters, base, performance.now() - startedAt);
}

function countLatency(counters: Float64Array, base: number, ms: number): void {
  counters[base + REQUESTS] = (counters[base + REQUESTS] ?? 0) + 1;
  counters[base + TOTAL_MS] = (counters[base + TOTAL_MS] ?? 0) + ms;
  if (ms > (counters[base + MAX_MS] ?? 0)) counters[base + MAX_MS] = ms;
  const bucket = base + BUCKETS + bucketOf(ms);
  counters[bucket] = (counters[bucket] ?? 0) + 1;
}

/** Requests of all threads for all devices so far: a number that changes while somebody uses them. */
export function countRequests(memory: SharedArrayBuffer): number {
  const all = new Float64Array(memory);
  let sum = 0;
  for (let base = FIRST_OPERATION; base < all.length; base += STRIDE) {
    for (let operation = 0; operation < OPERATIONS.length; operation++) {
      sum += all[base + operation * OPERATION_STRIDE + REQUESTS] ?? 0;
    }
  }
  return sum;
}

/** What was counted of one operation. */
export interface OperationCounts {
  readonly requests: number;
  readonly bytes: number;
  readonly errors: number;
  /** Of all requests together. */
  readonly totalMs: number;
  readonly maxMs: number;
  /** Requests in each of `LATENCY_BUCKETS`. */
  readonly buckets: Float64Array;
}

/** What was counted for one device, by one thread or by all. */
export interface DeviceCounts {
  readonly events: Readonly<Record<CounterName, number>>;
  readonly operations: Readonly<Record<OperationName, OperationCounts>>;
}

/** The counters of one device: of each thread. */
export function countsByThread(
  memory: SharedArrayBuffer,
  { device, devices }: { device: number; devices: number },
): DeviceCounts[] {
  const threads = memory.byteLength / Float64Array.BYTES_PER_ELEMENT / STRIDE / devices;
  return Array.from({ length: threads }, (_, thread) =>
    countsOf([threadCounters(memory, { thread, device, devices })]),
  );
}

/** The counters of one device: the sums over all threads. */
export function sumCounts(
  memory: SharedArrayBuffer,
  { device, devices }: { device: number; devices: number },
): DeviceCounts {
  const threads = memory.byteLength / Float64Array.BYTES_PER_ELEMENT / STRIDE / devices;
  return countsOf(
    Array.from({ length: threads }, (_, thread) =>
      threadCounters(memory, { thread, device, devices }),
    ),
  );
}

function countsOf(threads: readonly Float64Array[]): DeviceCounts {
  const sum = (index: number): number =>
    threads.reduce((total, counters) => total + (counters[index] ?? 0), 0);
  const operation = (index: number): OperationCounts => {
    const base = FIRST_OPERATION + index * OPERATION_STRIDE;
    return {
      requests: sum(base + REQUESTS),
      bytes: sum(base + BYTES),
      errors: sum(base + ERRORS),
      totalMs: sum(base + TOTAL_MS),
      maxMs: Math.max(...threads.map((counters) => counters[base + MAX_MS] ?? 0)),
      buckets: Float64Array.from({ length: LATENCY_BUCKETS }, (_, bucket) =>
        sum(base + BUCKETS + bucket),
      ),
    };
  };
  return {
    // One pair for each name.
    events: Object.fromEntries(COUNTERS.map((name, index) => [name, sum(index)])) as Record<
      CounterName,
      number
    >,
    operations: Object.fromEntries(
      OPERATIONS.map((name, index) => [name, operation(index)]),
    ) as Record<OperationName, OperationCounts>,
  };
}
