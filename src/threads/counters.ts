/**
 * Counters of requests, per thread and device, in shared memory. Each thread writes only its own, with
 * plain stores; whoever shows them adds them up. A sum may lag by the requests under way.
 */

export const COUNTERS = [
  "reads",
  "read-bytes",
  "read-errors",
  "seeks",
  "opens",
  "writes",
  "write-bytes",
  "write-errors",
  "zeroed-ranges",
  "zeroed-bytes",
  "flushes",
  "copy-on-read-stored",
  "copy-on-read-zero",
  "copy-on-read-failed",
] as const;
export type CounterName = (typeof COUNTERS)[number];

/** Index of each counter among those of a thread and device. */
export const COUNTER = {
  reads: 0,
  readBytes: 1,
  readErrors: 2,
  seeks: 3,
  opens: 4,
  writes: 5,
  writeBytes: 6,
  writeErrors: 7,
  zeroedRanges: 8,
  zeroedBytes: 9,
  flushes: 10,
  /** Clusters. */
  copyOnReadStored: 11,
  /** Clusters that became zero clusters. */
  copyOnReadZero: 12,
  /** Clusters that could not be stored. */
  copyOnReadFailed: 13,
} as const;

/** Those of requests that read or change a device. */
const REQUESTS = [
  COUNTER.reads,
  COUNTER.writes,
  COUNTER.zeroedRanges,
  COUNTER.flushes,
  COUNTER.seeks,
] as const;

/** Counters of one thread and device: a cache line more than needed keeps threads apart. */
const STRIDE = 24;

/** Memory for the counters of all threads and devices. */
export function createCounters(threads: number, devices: number): SharedArrayBuffer {
  return new SharedArrayBuffer(threads * devices * STRIDE * Float64Array.BYTES_PER_ELEMENT);
}

/** The counters of one thread for one device; write them only in that thread. */
export function threadCounters(
  memory: SharedArrayBuffer,
  { thread, device, devices }: { thread: number; device: number; devices: number },
): Float64Array {
  const index = (thread * devices + device) * STRIDE;
  return new Float64Array(memory, index * Float64Array.BYTES_PER_ELEMENT, COUNTERS.length);
}

/** Requests of all threads for all devices so far: a number that changes while somebody uses them. */
export function countRequests(memory: SharedArrayBuffer): number {
  const all = new Float64Array(memory);
  let count = 0;
  for (let base = 0; base < all.length; base += STRIDE) {
    for (const counter of REQUESTS) count += all[base + counter] ?? 0;
  }
  return count;
}

/** The sums over all threads for one device. */
export function sumCounters(
  memory: SharedArrayBuffer,
  { device, devices }: { device: number; devices: number },
): Record<CounterName, number> {
  const all = new Float64Array(memory);
  const sums = COUNTERS.map((name, index): [CounterName, number] => {
    let sum = 0;
    for (let base = device * STRIDE; base < all.length; base += devices * STRIDE) {
      sum += all[base + index] ?? 0;
    }
    return [name, sum];
  });
  // One pair for each name.
  return Object.fromEntries(sums) as Record<CounterName, number>;
}
