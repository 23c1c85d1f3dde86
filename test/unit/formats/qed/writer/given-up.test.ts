/** Clusters that nothing refers to: each is taken once, whoever added it. */

import { describe, expect, it } from "vitest";
import { GivenUpClusters } from "../../../../../src/formats/qed/writer/given-up.ts";
import {
  createSharedState,
  GIVEN_UP_MAX,
  NUMBER,
  SharedState,
} from "../../../../../src/formats/qed/writer/shared-state.ts";
import { Random } from "../../../../support/random.ts";

function takeAll(clusters: GivenUpClusters): number[] {
  const taken: number[] = [];
  for (let next = clusters.take(); next >= 0; next = clusters.take()) taken.push(next);
  return taken;
}

describe("GivenUpClusters", () => {
  it("are none at first", () => {
    const clusters = new GivenUpClusters(new SharedState(createSharedState()));
    expect(clusters.take()).toBe(-1);
  });

  it("are taken upwards where they are adjacent, by any thread", () => {
    const memory = createSharedState();
    const [one, other] = [new SharedState(memory), new SharedState(memory)];
    const [added, taken] = [new GivenUpClusters(one), new GivenUpClusters(other)];
    added.add(10, 2);
    added.add(12, 1);
    added.add(2 ** 40, 1);
    expect(one.get(NUMBER.givenUpExtents)).toBe(2);
    expect(takeAll(taken)).toEqual([2 ** 40, 10, 11, 12]);
    expect(added.take()).toBe(-1);
    // Not what comes after something that is all taken.
    added.add(13, 1);
    expect(takeAll(added)).toEqual([13]);
  });

  it("are refused where there is no room, and none is lost", () => {
    const clusters = new GivenUpClusters(new SharedState(createSharedState()));
    for (let index = 0; index < GIVEN_UP_MAX; index++) {
      expect(clusters.add(index * 2, 1)).toBe(true);
    }
    expect(clusters.add(2 * GIVEN_UP_MAX, 1)).toBe(false);
    // What follows the last one needs no room.
    expect(clusters.add(2 * GIVEN_UP_MAX - 1, 1)).toBe(true);
    expect(takeAll(clusters)).toHaveLength(GIVEN_UP_MAX + 1);
  });

  it("are each taken once", () => {
    const random = new Random("given up");
    const clusters = new GivenUpClusters(new SharedState(createSharedState()));
    const there = new Set<number>();
    let next = 0;
    for (let step = 0; step < 3000; step++) {
      if (random.below(2) === 0) {
        const count = random.between(1, 4);
        if (clusters.add(next, count)) {
          for (let index = 0; index < count; index++) there.add(next + index);
        }
        next += count + random.below(2);
        continue;
      }
      const cluster = clusters.take();
      expect(cluster >= 0).toBe(there.size > 0);
      if (cluster >= 0) expect(there.delete(cluster)).toBe(true);
    }
    for (const cluster of takeAll(clusters)) expect(there.delete(cluster)).toBe(true);
    expect(there.size).toBe(0);
  });
});
