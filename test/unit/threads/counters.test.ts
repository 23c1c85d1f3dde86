/** Counters of threads and devices in shared memory. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  COUNTER,
  COUNTERS,
  createCounters,
  sumCounters,
  threadCounters,
} from "../../../src/threads/counters.ts";

describe("counters", () => {
  it("start at 0 and have one name for each index", () => {
    const memory = createCounters(3, 2);
    expect(sumCounters(memory, { device: 1, devices: 2 })).toEqual({
      reads: 0,
      "read-bytes": 0,
      "read-errors": 0,
      seeks: 0,
      opens: 0,
      writes: 0,
      "write-bytes": 0,
      "write-errors": 0,
      "zeroed-ranges": 0,
      "zeroed-bytes": 0,
      flushes: 0,
      "copy-on-read-stored": 0,
      "copy-on-read-zero": 0,
      "copy-on-read-failed": 0,
    });
    expect(Object.values(COUNTER)).toEqual(COUNTERS.map((_, index) => index));
  });

  it("sum over threads and keep devices apart", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 1, max: 5 }),
        fc.array(fc.tuple(fc.nat(4), fc.nat(4), fc.nat(COUNTERS.length - 1), fc.nat(1e9))),
        (threads, devices, events) => {
          const memory = createCounters(threads, devices);
          const expected = new Map<string, number>();
          for (const [anyThread, anyDevice, counter, amount] of events) {
            const thread = anyThread % threads;
            const device = anyDevice % devices;
            const counters = threadCounters(memory, { thread, device, devices });
            counters[counter] = (counters[counter] ?? 0) + amount;
            const key = `${device} ${COUNTERS[counter]}`;
            expected.set(key, (expected.get(key) ?? 0) + amount);
          }
          for (let device = 0; device < devices; device++) {
            const sums = sumCounters(memory, { device, devices });
            for (const name of COUNTERS) {
              expect(sums[name]).toBe(expected.get(`${device} ${name}`) ?? 0);
            }
          }
        },
      ),
    );
  });

  it("count bytes beyond 2^32", () => {
    const memory = createCounters(1, 1);
    const counters = threadCounters(memory, { thread: 0, device: 0, devices: 1 });
    counters[COUNTER.readBytes] = 2 ** 40;
    counters[COUNTER.readBytes] = (counters[COUNTER.readBytes] ?? 0) + 1;
    expect(sumCounters(memory, { device: 0, devices: 1 })["read-bytes"]).toBe(2 ** 40 + 1);
  });
});
