/** Measures how far resident memory rises during a call in the test's own process. */

import { readFileSync, writeFileSync } from "node:fs";

/** What an image may cost, bytes: far more than a good one needs. */
const RISE_MAX = 300 * 1024 * 1024;

function statusKilobytes(name: "VmRSS" | "VmHWM"): number {
  const status = readFileSync("/proc/self/status", "latin1");
  return Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1] ?? Number.NaN);
}

/** Calls `body`; throws if the peak of resident memory rose by more than a limit meanwhile. */
export function expectBoundedMemory<T>(label: string, body: () => T): T {
  // Sets the peak to the present value: proc(5), /proc/pid/clear_refs.
  writeFileSync("/proc/self/clear_refs", "5");
  const before = statusKilobytes("VmRSS");
  const result = body();
  const rise = (statusKilobytes("VmHWM") - before) * 1024;
  if (!(rise < RISE_MAX)) {
    throw new Error(`${label}: resident memory rose by ${rise} bytes`);
  }
  return result;
}
