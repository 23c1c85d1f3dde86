/** Busy ranges: which ones overlap, and that real threads never have the same byte at the same time. */

import { describe, expect, it } from "vitest";
import { createAccessLock } from "../../../src/threads/access-lock.ts";
import { BusyRanges, createBusyRanges } from "../../../src/threads/busy-ranges.ts";
import { asArray, asRecord } from "../../support/json.ts";
import { SEED } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { bundleWorker, runWorker } from "../bundled-worker.ts";
import type { BusyRangesWorkerData } from "./busy-ranges-worker.ts";

describe("BusyRanges.findOverlap", () => {
  const END = Number.MAX_SAFE_INTEGER;

  it("finds nothing where nothing is claimed", () => {
    const busy = new BusyRanges(createBusyRanges(3), 1);
    expect(busy.findOverlap(0, 1)).toBe(-1);
    expect(busy.findOverlap(0, END)).toBe(-1);
    busy.release();
    expect(busy.findOverlap(0, END)).toBe(-1);
  });

  it.each([
    { start: 0, end: 100, found: -1 },
    { start: 0, end: 101, found: 2 },
    { start: 100, end: 101, found: 2 },
    { start: 199, end: 200, found: 2 },
    { start: 199, end: 300, found: 2 },
    { start: 200, end: 300, found: -1 },
    { start: 0, end: END, found: 2 },
  ])("looks from $start to $end", ({ start, end, found }) => {
    const memory = createBusyRanges(4);
    new BusyRanges(memory, 2).claim(100, 200);
    expect(new BusyRanges(memory, 0).findOverlap(start, end)).toBe(found);
    expect(new BusyRanges(memory, 3).findOverlap(start, end)).toBe(found);
  });

  it("knows ranges up to the end of the largest disk", () => {
    const memory = createBusyRanges(2);
    const [all, other] = [new BusyRanges(memory, 0), new BusyRanges(memory, 1)];
    all.claim(0, END);
    expect(other.findOverlap(0, 1)).toBe(0);
    expect(other.findOverlap(END - 1, END)).toBe(0);
    all.release();
    all.claim(2 ** 52, 2 ** 52 + 1);
    expect(other.findOverlap(2 ** 52 - 1, 2 ** 52)).toBe(-1);
    expect(other.findOverlap(2 ** 52, 2 ** 52 + 1)).toBe(0);
  });

  it("finds one after the other of several", () => {
    const memory = createBusyRanges(3);
    const slots = [0, 1, 2].map((slot) => new BusyRanges(memory, slot));
    slots[0]?.claim(0, 10);
    slots[1]?.claim(20, 30);
    expect(slots[2]?.findOverlap(5, 25)).toBe(0);
    slots[0]?.release();
    expect(slots[2]?.findOverlap(5, 25)).toBe(1);
    slots[1]?.release();
    expect(slots[2]?.findOverlap(5, 25)).toBe(-1);
  });
});

describe("BusyRanges.waitForRelease", () => {
  it("does not wait for what was released since it was looked at", () => {
    const memory = createBusyRanges(2);
    const [one, other] = [new BusyRanges(memory, 0), new BusyRanges(memory, 1)];
    one.claim(0, 10);
    const slot = other.findOverlap(0, 10);
    const releases = other.releasesOf(slot);
    one.release();
    one.claim(0, 10);
    other.waitForRelease(slot, releases);
    expect(other.releasesOf(slot)).not.toBe(releases);
  });
});

describe("BusyRanges between threads", () => {
  it("gives each byte to one thread at a time, and each thread its turn", async () => {
    const threads = 5;
    const rounds = byScale(3000, 60_000);
    const memory = new SharedArrayBuffer(16 * 4);
    const [lock, busy] = [createAccessLock(threads), createBusyRanges(threads)];
    const script = await bundleWorker(new URL("./busy-ranges-worker.ts", import.meta.url));
    const results = await Promise.all(
      Array.from({ length: threads }, (_, slot) => {
        const data: BusyRangesWorkerData = { lock, busy, memory, slot, seed: SEED, rounds };
        return runWorker(script, data);
      }),
    );
    const words = new Int32Array(memory);
    const sums = Array.from(words, (_, at) =>
      results.reduce<number>((sum, result) => {
        return sum + Number(asArray(asRecord(result)["changes"])[at]);
      }, 0),
    );
    expect([...words]).toEqual(sums);
  });
});
