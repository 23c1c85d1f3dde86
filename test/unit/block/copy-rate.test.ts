import { describe, expect, it } from "vitest";
import { RateLimit, RateMeter } from "../../../src/block/copy-rate.ts";

/** Steps of 2 MiB, of so many ms each, on a clock of the test; returns ms until `bytes` are copied. */
function timeFor(limit: RateLimit, bytes: number, stepMs: number): number {
  const step = 2 * 1024 * 1024;
  let now = 1000;
  for (let copied = 0; copied < bytes; copied += step) {
    const start = now;
    now += stepMs;
    now += limit.pauseAfter(step, start, now);
  }
  return now - 1000;
}

describe("a limit to the rate", () => {
  it("of nothing never waits", () => {
    expect(timeFor(new RateLimit(undefined), 2 ** 30, 3)).toBe(512 * 3);
  });

  it.each([1, 10, 100])("is kept by steps of %i ms", (stepMs) => {
    const bytes = 64 * 1024 * 1024;
    expect(timeFor(new RateLimit(2 ** 20), bytes, stepMs)).toBeCloseTo(64_000, 3);
  });

  it("does not slow down what is slower anyway", () => {
    expect(timeFor(new RateLimit(2 ** 30), 64 * 1024 * 1024, 1000)).toBe(32_000);
  });

  it("lets nobody catch up on what he did not copy before", () => {
    const limit = new RateLimit(1000);
    expect(limit.pauseAfter(0, 0, 60_000)).toBe(0);
    expect(limit.pauseAfter(1000, 60_000, 60_000)).toBe(1000);
  });

  it("may change", () => {
    const limit = new RateLimit(1000);
    expect(limit.pauseAfter(500, 0, 0)).toBe(500);
    limit.rate = 2000;
    expect(limit.pauseAfter(500, 500, 500)).toBe(250);
  });
});

describe("a measured rate", () => {
  it("is that of the last second", () => {
    const meter = new RateMeter(0, 0);
    expect(meter.rateAt(0, 0)).toBe(0);
    expect(meter.rateAt(100, 10)).toBe(100);
    expect(meter.rateAt(1000, 500)).toBe(500);
    expect(meter.rateAt(1500, 9000)).toBe(500);
    expect(meter.rateAt(2000, 500)).toBe(0);
  });
});
