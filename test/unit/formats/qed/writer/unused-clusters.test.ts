/** Clusters that nothing refers to: each is taken once, whoever added it. */

import { describe, expect, it } from "vitest";
import {
  EXTENTS_MAX,
  UNUSED_DOUBLES,
  UnusedClusters,
} from "../../../../../src/formats/qed/writer/unused-clusters.ts";
import { Random } from "../../../../support/random.ts";

const sharedDoubles = (): Float64Array =>
  new Float64Array(new SharedArrayBuffer(UNUSED_DOUBLES * Float64Array.BYTES_PER_ELEMENT));

/** Takes all that is left, `wanted` at a time. */
function takeAll(clusters: UnusedClusters, wanted = 1): string[] {
  const taken: string[] = [];
  for (let count = clusters.take(wanted); count > 0; count = clusters.take(wanted)) {
    taken.push(`${clusters.taken}+${count}`);
  }
  return taken;
}

describe("UnusedClusters", () => {
  it("are none at first", () => {
    const clusters = new UnusedClusters(sharedDoubles());
    expect(clusters.take(1)).toBe(0);
    expect([...clusters]).toEqual([]);
  });

  it("are taken upwards where they are adjacent, by any thread", () => {
    const doubles = sharedDoubles();
    const [added, taken] = [new UnusedClusters(doubles), new UnusedClusters(doubles)];
    added.add(10, 2);
    added.add(12, 1);
    added.add(2 ** 40, 1);
    expect(taken.extents).toBe(2);
    expect([...taken]).toEqual([
      { first: 10, count: 3 },
      { first: 2 ** 40, count: 1 },
    ]);
    expect(takeAll(taken)).toEqual([`${2 ** 40}+1`, "10+1", "11+1", "12+1"]);
    expect(added.take(1)).toBe(0);
    // Not what comes after something that is all taken.
    added.add(13, 1);
    expect(takeAll(added)).toEqual(["13+1"]);
  });

  it("are taken many at once, but not of two extents", () => {
    const clusters = new UnusedClusters(sharedDoubles());
    clusters.add(100, 10);
    clusters.add(5, 7);
    expect(takeAll(clusters, 4)).toEqual(["5+4", "9+3", "100+4", "104+4", "108+2"]);
  });

  it("are refused where there is no room, and none is lost", () => {
    const clusters = new UnusedClusters(sharedDoubles());
    for (let index = 0; index < EXTENTS_MAX; index++) expect(clusters.add(index * 2, 1)).toBe(true);
    expect(clusters.add(2 * EXTENTS_MAX, 1)).toBe(false);
    // What follows the last one needs no room.
    expect(clusters.add(2 * EXTENTS_MAX - 1, 1)).toBe(true);
    expect(takeAll(clusters)).toHaveLength(EXTENTS_MAX + 1);
  });

  it("are each taken once", () => {
    const random = new Random("unused clusters");
    const clusters = new UnusedClusters(sharedDoubles());
    const there = new Set<number>();
    const takeSome = (wanted: number): void => {
      const count = clusters.take(wanted);
      expect(count > 0).toBe(there.size > 0);
      for (let index = 0; index < count; index++) {
        expect(there.delete(clusters.taken + index)).toBe(true);
      }
    };
    let next = 0;
    for (let step = 0; step < 3000; step++) {
      if (random.below(2) === 0) {
        takeSome(random.between(1, 6));
        continue;
      }
      const count = random.between(1, 4);
      if (clusters.add(next, count)) {
        for (let index = 0; index < count; index++) there.add(next + index);
      }
      next += count + random.below(2);
    }
    while (there.size > 0) takeSome(100);
    expect(clusters.extents).toBe(0);
  });
});
