/** The bounded counters of a check, beside plain maps. */

import { describe, expect, it } from "vitest";
import { Findings } from "../../../../src/formats/qcow2/check/findings.ts";
import { L2Tables } from "../../../../src/formats/qcow2/check/l2-tables.ts";
import { ReferenceCounts } from "../../../../src/formats/qcow2/check/reference-counts.ts";
import { overlay } from "../../../../src/formats/qcow2/check/weighted-ranges.ts";
import { Random } from "../../../support/random.ts";

describe("ReferenceCounts", () => {
  it("counts as a map does, with numbers of all widths", () => {
    const random = new Random("reference counts");
    const counts = new ReferenceCounts("disk.qcow2", 100);
    const map = new Map<number, number>();
    const weights = [1, 1, 1, 255, 256, 65535, 65536, 2 ** 32 - 1, 2 ** 32, 2 ** 40];
    for (let step = 0; step < 20_000; step++) {
      const cluster = random.below(random.below(2) === 0 ? 50 : 2 ** 31);
      const weight = weights[random.below(step % 100 === 0 ? weights.length : 3)] ?? 1;
      counts.add(cluster, weight);
      map.set(cluster, (map.get(cluster) ?? 0) + weight);
    }
    for (const [cluster, count] of map) expect(counts.get(cluster)).toBe(count);
    const order = [...map.keys()].sort((a, b) => a - b);
    expect(counts.clusters).toBe((order.at(-1) ?? 0) + 1);
    const found: number[] = [];
    let cluster = counts.nextReferenced(0);
    for (; cluster !== Infinity; cluster = counts.nextReferenced(cluster + 1)) found.push(cluster);
    expect(found).toEqual(order);
  });

  it("looks no further than it is told", () => {
    const counts = new ReferenceCounts("disk.qcow2", 0);
    counts.add(4096, 1);
    expect(counts.nextReferenced(0, 4096)).toBe(Infinity);
    expect(counts.nextReferenced(0, 4097)).toBe(4096);
    expect(counts.nextReferenced(4096)).toBe(4096);
    expect(counts.nextReferenced(4097)).toBe(Infinity);
    counts.add(4096, -1);
    expect(counts.nextReferenced(0)).toBe(Infinity);
  });
});

describe("L2Tables", () => {
  it("adds up what names each table, in the order of the file", () => {
    const random = new Random("l2 tables");
    const tables = new L2Tables("disk.qcow2", 512);
    const map = new Map<number, { active: number; total: number }>();
    for (let step = 0; step < 20_000; step++) {
      const offset = random.below(random.below(2) === 0 ? 100 : 2 ** 40) * 512;
      const [active, total] = [random.below(3), random.between(3, 9)];
      tables.add(offset, active, total);
      const sum = map.get(offset) ?? { active: 0, total: 0 };
      map.set(offset, { active: sum.active + active, total: sum.total + total });
    }
    expect([...tables.inOrder()]).toEqual([...map.keys()].sort((a, b) => a - b));
    for (const [offset, { active, total }] of map) {
      expect(tables.activeAt(offset)).toBe(active);
      expect(tables.totalAt(offset)).toBe(total);
    }
    expect(tables.totalAt(513 * 512 + 1e15 * 0)).toBe(map.get(513 * 512)?.total ?? 0);
  });
});

describe("overlay", () => {
  it("covers each byte once, with the number of ranges there", () => {
    const random = new Random("overlay");
    for (let round = 0; round < 200; round++) {
      const ranges = Array.from({ length: random.below(12) }, () => {
        const start = random.below(40);
        return { start, end: start + random.below(20), active: random.below(2) === 0 };
      });
      const pieces = [...overlay(ranges)];
      for (let at = 0; at < 70; at++) {
        const covering = ranges.filter(({ start, end }) => start <= at && at < end);
        const found = pieces.filter(({ start, end }) => start <= at && at < end);
        expect(found).toHaveLength(covering.length > 0 ? 1 : 0);
        expect(found[0]?.total ?? 0).toBe(covering.length);
        expect(found[0]?.active ?? 0).toBe(covering.filter(({ active }) => active).length);
      }
    }
  });
});

describe("Findings", () => {
  it("describes the first hundred, and counts all", () => {
    const lines: string[] = [];
    const findings = new Findings((line) => lines.push(line));
    for (let index = 0; index < 250; index++) findings.add("leak", 2, () => `leak ${index}`);
    findings.end();
    expect(findings.count("leak")).toBe(500);
    expect(findings.corruptions()).toBe(0);
    expect(lines).toHaveLength(101);
    expect(lines[99]).toBe("leak 99");
    expect(lines[100]).toBe("150 more findings are not shown");
  });
});
