/** Which clusters are used, and which between them are not, against a plain set of numbers. */

import { describe, expect, it } from "vitest";
import { UsedClusters } from "../../../../../src/formats/qed/check/used-clusters.ts";
import { Random } from "../../../../support/random.ts";

function gapsOf(used: UsedClusters, start: number): string[] {
  return [...used.gaps(start)].map(({ first, count }) => `${first}+${count}`);
}

function usedOf(clusters: Iterable<number>): UsedClusters {
  const used = new UsedClusters();
  for (const cluster of clusters) used.mark(cluster);
  return used;
}

describe("UsedClusters.gaps", () => {
  it.each([
    { clusters: [], start: 0, gaps: [] },
    { clusters: [0, 1, 2], start: 0, gaps: [] },
    { clusters: [0, 1, 2], start: 3, gaps: [] },
    { clusters: [0, 1, 2], start: 100, gaps: [] },
    { clusters: [1], start: 0, gaps: ["0+1"] },
    { clusters: [1, 5], start: 1, gaps: ["2+3"] },
    { clusters: [1, 5], start: 3, gaps: ["3+2"] },
    { clusters: [31, 32, 64, 95, 96], start: 0, gaps: ["0+31", "33+31", "65+30"] },
    // Far beyond what is looked at at once.
    {
      clusters: [7, 2 ** 20, 2 ** 20 + 1, 5 * 2 ** 20 + 3],
      start: 7,
      gaps: [`8+${2 ** 20 - 8}`, `${2 ** 20 + 2}+${4 * 2 ** 20 + 1}`],
    },
    { clusters: [2 ** 31 - 2], start: 1, gaps: [`1+${2 ** 31 - 3}`] },
  ])("of $clusters from $start on are $gaps", ({ clusters, start, gaps }) => {
    expect(gapsOf(usedOf(clusters), start)).toEqual(gaps);
  });

  it("are all that is not used, of random clusters", () => {
    const random = new Random("gaps");
    for (let round = 0; round < 50; round++) {
      const base = random.pick([0, 2 ** 20 - 100, 3 * 2 ** 20 + 5]);
      const range = random.pick([40, 300, 3000]);
      const clusters = new Set<number>();
      for (let count = random.below(range); count >= 0; count--) {
        clusters.add(base + random.below(range));
      }
      const used = usedOf(clusters);
      const start = base + random.below(20);
      const end = Math.max(...clusters) + 1;
      expect(used.end).toBe(end);
      const free = new Set<number>();
      for (let cluster = start; cluster < end; cluster++) {
        if (!clusters.has(cluster)) free.add(cluster);
      }
      let last = -2;
      for (const { first, count } of used.gaps(start)) {
        expect(first).toBeGreaterThan(last + 1);
        for (let index = 0; index < count; index++) {
          expect(free.delete(first + index)).toBe(true);
        }
        last = first + count - 1;
      }
      expect(free.size).toBe(0);
    }
  });
});
