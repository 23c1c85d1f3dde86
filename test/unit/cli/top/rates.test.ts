/** What two samples of counters say was done in between, and how it is shown. */

import { describe, expect, it } from "vitest";
import { frameText } from "../../../../src/cli/top/frame.ts";
import { ratesOf } from "../../../../src/cli/top/rates.ts";
import type { MountActivity } from "../../../../src/cli/top/sampler.ts";
import {
  COUNTER,
  count,
  createCounters,
  OPERATION,
  threadCounters,
} from "../../../../src/threads/counters.ts";
import { bucketOf } from "../../../../src/threads/latency-histogram.ts";
import { type CounterSample, counterSample } from "../../../../src/tree/io-fields.ts";

const PLACE = { device: 0, devices: 1 };

function emptySample(): CounterSample {
  return counterSample(createCounters(1, 1), PLACE, undefined);
}

/** Reads and writes with these latencies, ms, of 4 KiB each. */
function sampleOf(reads: readonly number[], writes: readonly number[]): CounterSample {
  const sample = emptySample();
  const operation = (times: readonly number[]): CounterSample["operations"]["read"] => {
    const buckets = new Map<number, number>();
    for (const ms of times) buckets.set(bucketOf(ms), (buckets.get(bucketOf(ms)) ?? 0) + 1);
    return {
      requests: times.length,
      bytes: times.length * 4096,
      errors: 0,
      latencies: [...buckets],
    };
  };
  const operations = { ...sample.operations, read: operation(reads), write: operation(writes) };
  return { ...sample, operations };
}

describe("the rates of a device", () => {
  it("are what the counters gained, by second", () => {
    const old = Array.from({ length: 50 }, () => 900);
    const before = sampleOf(old, [1]);
    const now = sampleOf([...old, ...Array.from({ length: 99 }, () => 0.1), 20], [1]);
    const { operations, ...rest } = ratesOf(before, now, 2);
    expect(operations["read"]).toMatchObject({
      "requests-per-second": 50,
      "bytes-per-second": 50 * 4096,
      errors: 0,
    });
    const { p50, p99 } = operations["read"]?.["latency-us"] ?? { p50: 0, p99: 0 };
    expect(Math.abs(p50 - 100)).toBeLessThanOrEqual(13);
    expect(Math.abs(p99 - 100)).toBeLessThanOrEqual(13);
    expect(operations["write"]).toMatchObject({
      "requests-per-second": 0,
      "latency-us": { p50: 0, p99: 0 },
    });
    expect(rest).toMatchObject({ "copied-clusters-per-second": 0, "table-cache-hit-ratio": 1 });
  });

  it("has copies, failures and the share of tables that were in memory", () => {
    const memory = createCounters(1, 1);
    const before = counterSample(memory, PLACE, undefined);
    const counters = threadCounters(memory, { thread: 0, ...PLACE });
    count(counters, COUNTER.copyOnReadStored, 30);
    count(counters, COUNTER.copyOnReadZero, 10);
    count(counters, COUNTER.copyOnReadFailed, 2);
    count(counters, COUNTER.tableCacheHits, 3);
    count(counters, COUNTER.tableCacheMisses, 1);
    expect(ratesOf(before, counterSample(memory, PLACE, undefined), 0.5)).toMatchObject({
      "copied-clusters-per-second": 80,
      "copies-failed": 2,
      "table-cache-hit-ratio": 0.75,
    });
    expect(OPERATION.read).toBe(0);
  });
});

describe("a frame", () => {
  const stream = {
    state: "running",
    done: 25,
    total: 100,
    "copied-bytes": 20,
    rate: 1024,
  } as const;
  const rates = ratesOf(emptySample(), { ...sampleOf([1, 1], []), stream }, 1);
  const device = { device: "/mnt/vm.raw", image: "/vm.qcow2", format: "qcow2" };
  const mounts: MountActivity[] = [
    { mountpoint: "/mnt", state: "active", pid: 1, devices: [{ ...device, rates }] },
    {
      ...{ mountpoint: "/new", state: "active", pid: 2 },
      devices: [{ ...device, device: "/new/a\u001b[31m.raw", rates: undefined }],
    },
    { mountpoint: "/dead", state: "stale", pid: undefined, devices: [] },
  ];
  const style = { columns: 200, rows: 50, colors: false };

  it("has a line for each device, below its mount", () => {
    const lines = frameText(mounts, "12:00:00", style).split("\n");
    expect(lines[0]).toBe(
      "tsimgfs top  12:00:00  2 devices in 3 mounts  read 8 KiB/s, write 0 B/s",
    );
    expect(lines[3]).toBe("/mnt");
    expect(lines[4]?.trim().split(/ {2,}| (?=\d)/)).toEqual(
      expect.arrayContaining(["vm.raw", "2.0", "8 KiB"]),
    );
    expect(lines[4]).toMatch(/running 25% 1 KiB\/s$/);
    expect(lines[6]).toMatch(/^ {2}a\\x1b\[31m\.raw +-$/);
    expect(lines[7]).toBe("/dead  (its daemon is dead)");
    expect(lines.join("")).not.toContain("\u001b");
  });

  it.each([1, 20, 80])("fits %i columns", (columns) => {
    const lines = frameText(mounts, "12:00:00", { ...style, columns }).split("\n");
    for (const line of lines) expect([...line].length).toBeLessThanOrEqual(columns);
  });

  it.each([0, 1, 5, 8])("fits %i lines", (rows) => {
    const text = frameText(mounts, "12:00:00", { ...style, rows });
    expect(text.split("\n").length - 1).toBe(rows);
    if (rows > 0 && rows < 8) expect(text).toMatch(/… \d+ more lines\n$/);
  });

  it("has colours where they are wanted, and ends each", () => {
    const text = frameText(mounts, "12:00:00", { ...style, colors: true });
    const codes = text
      .split("\u001b[")
      .slice(1)
      .map((part) => part.slice(0, part.indexOf("m")));
    expect(codes.length).toBeGreaterThan(0);
    expect(codes.filter((code) => code === "0").length).toBe(codes.length / 2);
  });
});
