/** Clusters that wait to be freed: against lists, also where the counts of the queue overflow. */

import { describe, expect, it } from "vitest";
import { FreeQueue } from "../../../../../src/formats/qcow2/writer/free-queue.ts";
import {
  FREES_MAX,
  type SharedState,
  WORD,
} from "../../../../../src/formats/qcow2/writer/shared-state.ts";
import { Random } from "../../../../support/random.ts";
import { writerState } from "./writer-state.ts";

/** A queue whose counts start at `start`. */
function queueFrom(start: number): { queue: FreeQueue; state: SharedState } {
  const { state } = writerState();
  for (const word of [WORD.freesHead, WORD.freesTail, WORD.freesDurable]) state.words[word] = start;
  return { queue: new FreeQueue(state), state };
}

/** How often each cluster is in some runs. */
function countsOf(runs: readonly { first: number; count: number }[]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const { first, count } of runs) {
    for (let cluster = first; cluster < first + count; cluster++) {
      counts.set(cluster, (counts.get(cluster) ?? 0) + 1);
    }
  }
  return new Map([...counts].sort(([a], [b]) => a - b));
}

/** What `flush` does. */
function makeDurable(queue: FreeQueue): boolean {
  return queue.markDurable(queue.mark());
}

describe.each([0, 0x7fff_fffc, -1, -FREES_MAX - 3, 12_345])(
  "a FreeQueue whose counts start at %i",
  (start) => {
    it("gives out what is published and durable, once", () => {
      const { queue } = queueFrom(start);
      expect(queue.hasAny()).toBe(false);
      queue.add(5, 1);
      queue.add(100, 3);
      expect(queue.hasAny()).toBe(false);
      expect(makeDurable(queue)).toBe(false);
      queue.publish();
      expect(queue.hasAny()).toBe(true);
      expect(queue.takeDurable()).toEqual([]);
      expect(makeDurable(queue)).toBe(true);
      expect(queue.takeDurable()).toEqual([
        { first: 5, count: 1 },
        { first: 100, count: 3 },
      ]);
      expect(queue.hasAny()).toBe(false);
      expect(queue.takeDurable()).toEqual([]);
      expect(makeDurable(queue)).toBe(false);
    });

    it("keeps back what was published after the mark", () => {
      const { queue } = queueFrom(start);
      queue.add(1, 1);
      queue.publish();
      const mark = queue.mark();
      queue.add(10, 1);
      queue.publish();
      expect(queue.markDurable(mark)).toBe(true);
      expect(queue.takeDurable()).toEqual([{ first: 1, count: 1 }]);
      expect(queue.hasAny()).toBe(true);
      expect(queue.takeDurable()).toEqual([]);
    });

    it("does not go back to an earlier mark", () => {
      const { queue } = queueFrom(start);
      queue.add(1, 1);
      queue.publish();
      const early = queue.mark();
      queue.add(10, 1);
      queue.publish();
      makeDurable(queue);
      expect(queue.markDurable(early)).toBe(true);
      expect(countsOf(queue.takeDurable())).toEqual(
        new Map([
          [1, 1],
          [10, 1],
        ]),
      );
      expect(queue.markDurable(early)).toBe(false);
      expect(queue.takeDurable()).toEqual([]);
    });

    it("has room for so many runs and no more, again and again", () => {
      const { queue, state } = queueFrom(start);
      for (let round = 0; round < 3; round++) {
        expect(queue.hasRoom(FREES_MAX)).toBe(true);
        expect(queue.hasRoom(FREES_MAX + 1)).toBe(false);
        for (let run = 0; run < FREES_MAX; run++) {
          queue.add(run * 2, 1);
          if (run % 500 === 499) queue.publish();
        }
        queue.publish();
        expect(queue.hasRoom(0)).toBe(true);
        expect(queue.hasRoom(1)).toBe(false);
        expect(state.isSet(WORD.leaks)).toBe(false);
        makeDurable(queue);
        const runs = queue.takeDurable();
        expect(runs).toHaveLength(FREES_MAX);
        expect(runs.every(({ first, count }, index) => first === index * 2 && count === 1)).toBe(
          true,
        );
      }
    });

    it("leaks what it has no room for, and says so", () => {
      const { queue, state } = queueFrom(start);
      for (let run = 0; run < FREES_MAX; run++) {
        queue.add(run * 2, 1);
        if (run % 500 === 499) queue.publish();
      }
      queue.publish();
      queue.add(1_000_000, 1);
      queue.publish();
      expect(state.isSet(WORD.leaks)).toBe(true);
      makeDurable(queue);
      expect(countsOf(queue.takeDurable()).has(1_000_000)).toBe(false);
      queue.add(1_000_000, 1);
      queue.publish();
      makeDurable(queue);
      expect(queue.takeDurable()).toEqual([{ first: 1_000_000, count: 1 }]);
    });
  },
);

describe("FreeQueue", () => {
  it("joins what follows each other, and sorts it", () => {
    const { queue } = queueFrom(0);
    for (const [first, count] of [
      [10, 1],
      [11, 2],
      [13, 1],
      [7, 3],
      [20, 1],
    ] as const) {
      queue.add(first, count);
    }
    queue.publish();
    queue.add(14, 1);
    queue.publish();
    makeDurable(queue);
    expect(queue.takeDurable()).toEqual([
      { first: 7, count: 8 },
      { first: 20, count: 1 },
    ]);
  });

  it("forgets what may still be referred to, and says that clusters may be leaked", () => {
    const { queue, state } = queueFrom(0);
    queue.add(10, 1);
    queue.forget();
    expect(state.isSet(WORD.leaks)).toBe(true);
    queue.publish();
    expect(queue.hasAny()).toBe(false);
    queue.add(11, 1);
    queue.publish();
    makeDurable(queue);
    expect(queue.takeDurable()).toEqual([{ first: 11, count: 1 }]);
  });

  it("takes nothing more after a failed sync, however much is freed", () => {
    const { queue, state } = queueFrom(0);
    state.raise(WORD.syncFailed);
    for (let round = 0; round < 100; round++) {
      expect(queue.hasRoom(FREES_MAX)).toBe(true);
      for (let run = 0; run < 500; run++) queue.add(run * 2, 1);
      queue.publish();
    }
    expect(queue.hasAny()).toBe(false);
    expect(state.isSet(WORD.leaks)).toBe(true);
  });

  it("gives back each reference that was put in, from several threads' queues", () => {
    const random = new Random("free queue");
    const { state } = writerState();
    state.words.fill(-50, WORD.freesHead, WORD.freesDurable + 1);
    const queues = [new FreeQueue(state), new FreeQueue(state)] as const;
    const put: { first: number; count: number }[] = [];
    const taken: { first: number; count: number }[] = [];
    for (let round = 0; round < 300; round++) {
      const queue = random.pick(queues);
      for (let runs = random.below(20); runs > 0; runs--) {
        const run = { first: random.below(200), count: random.between(1, 5) };
        queue.add(run.first, run.count);
        put.push(run);
      }
      queue.publish();
      if (random.below(3) === 0) makeDurable(queue);
      if (random.below(3) === 0) taken.push(...queue.takeDurable());
    }
    makeDurable(queues[0]);
    taken.push(...queues[1].takeDurable());
    expect(countsOf(taken)).toEqual(countsOf(put));
    expect(queues[0].hasAny()).toBe(false);
  });
});
