/** Counters of threads and devices in shared memory. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  COUNTER,
  COUNTERS,
  count,
  countError,
  countRequest,
  countRequests,
  countsByThread,
  createCounters,
  OPERATION,
  OPERATIONS,
  sumCounts,
  threadCounters,
} from "../../../src/threads/counters.ts";

interface Event {
  readonly thread: number;
  readonly device: number;
  readonly counter: number;
  readonly operation: number;
  readonly amount: number;
  readonly kind: "event" | "request" | "error";
}

const event: fc.Arbitrary<Event> = fc.record({
  thread: fc.nat(4),
  device: fc.nat(4),
  counter: fc.nat(COUNTERS.length - 1),
  operation: fc.nat(OPERATIONS.length - 1),
  amount: fc.nat(1e9),
  kind: fc.constantFrom("event", "request", "error"),
});

describe("counters", () => {
  it("have one name for each index, and start at 0", () => {
    expect(Object.values(COUNTER)).toEqual(COUNTERS.map((_, index) => index));
    expect(Object.keys(OPERATION)).toEqual(OPERATIONS);
    expect(Object.values(OPERATION)).toEqual(OPERATIONS.map((_, index) => index));
    const { events, operations } = sumCounts(createCounters(3, 2), { device: 1, devices: 2 });
    expect(events).toEqual(Object.fromEntries(COUNTERS.map((name) => [name, 0])));
    expect(Object.keys(operations)).toEqual(OPERATIONS);
    for (const operation of Object.values(operations)) {
      expect(operation).toMatchObject({ requests: 0, bytes: 0, errors: 0, totalMs: 0, maxMs: 0 });
      expect(operation.buckets.every((requests) => requests === 0)).toBe(true);
    }
  });

  it("sum over threads and keep devices, operations and events apart", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 1, max: 5 }),
        fc.array(event, { maxLength: 60 }),
        (threads, devices, happened) => {
          const memory = createCounters(threads, devices);
          const events = happened.map((one) => ({
            ...one,
            thread: one.thread % threads,
            device: one.device % devices,
          }));
          for (const { thread, device, counter, operation, amount, kind } of events) {
            const counters = threadCounters(memory, { thread, device, devices });
            const now = performance.now();
            if (kind === "event") count(counters, counter, amount);
            else if (kind === "error") countError(counters, operation, now);
            else countRequest(counters, operation, now, amount);
          }
          const sum = (chosen: readonly Event[]): number =>
            chosen.reduce((total, { amount }) => total + amount, 0);
          const expectCounts = (
            { events: found, operations }: ReturnType<typeof sumCounts>,
            own: readonly Event[],
          ): void => {
            COUNTERS.forEach((name, index) => {
              const of = own.filter(({ kind, counter }) => kind === "event" && counter === index);
              expect(found[name]).toBe(sum(of));
            });
            OPERATIONS.forEach((name, index) => {
              const of = own.filter(
                ({ kind, operation }) => kind !== "event" && operation === index,
              );
              const served = of.filter(({ kind }) => kind === "request");
              const { requests, bytes, errors, buckets, totalMs, maxMs } = operations[name];
              expect([requests, bytes, errors]).toEqual([
                of.length,
                sum(served),
                of.length - served.length,
              ]);
              expect(buckets.reduce((total, inBucket) => total + inBucket, 0)).toBe(of.length);
              expect(totalMs).toBeGreaterThanOrEqual(maxMs);
            });
          };
          for (let device = 0; device < devices; device++) {
            const place = { device, devices };
            const own = events.filter((one) => one.device === device);
            expectCounts(sumCounts(memory, place), own);
            countsByThread(memory, place).forEach((counts, thread) => {
              expectCounts(
                counts,
                own.filter((one) => one.thread === thread),
              );
            });
          }
          const requests = events.filter(({ kind }) => kind !== "event").length;
          expect(countRequests(memory)).toBe(requests);
        },
      ),
    );
  });

  it("count bytes beyond 2^32", () => {
    const memory = createCounters(1, 1);
    const place = { device: 0, devices: 1 };
    const counters = threadCounters(memory, { thread: 0, ...place });
    countRequest(counters, OPERATION.read, performance.now(), 2 ** 40);
    countRequest(counters, OPERATION.read, performance.now(), 1);
    expect(sumCounts(memory, place).operations.read.bytes).toBe(2 ** 40 + 1);
  });

  it("tell the longest time, and all together", () => {
    const memory = createCounters(2, 1);
    const place = { device: 0, devices: 1 };
    const now = performance.now();
    for (const [thread, ms] of [20, 500].entries()) {
      countRequest(threadCounters(memory, { thread, ...place }), OPERATION.flush, now - ms, 0);
    }
    const { maxMs, totalMs } = sumCounts(memory, place).operations.flush;
    expect(maxMs).toBeGreaterThanOrEqual(500);
    expect(totalMs).toBeGreaterThanOrEqual(520);
    expect(totalMs).toBeLessThan(maxMs * 2);
  });
});
