/** Reserved clusters: each is given out once, in the order of the runs. */

import { describe, expect, it } from "vitest";
import { Reservation } from "../../../../../src/formats/qcow2/writer/reservation.ts";
import { NUMBER, RESERVED_MAX } from "../../../../../src/formats/qcow2/writer/shared-state.ts";
import { Random } from "../../../../support/random.ts";
import { writerState } from "./writer-state.ts";

interface Run {
  readonly first: number;
  readonly count: number;
}

function clustersOf(runs: readonly Run[]): number[] {
  return runs.flatMap(({ first, count }) => Array.from({ length: count }, (_, at) => first + at));
}

/** Some runs from `start` on, which may touch each other. */
function randomRuns(random: Random, start: number): Run[] {
  let next = start;
  return Array.from({ length: random.below(10) }, () => {
    const first = next + random.below(5);
    const count = random.between(1, 9);
    next = first + count;
    return { first, count };
  });
}

/** Takes until nothing is left, in pieces of `wanted`. */
function takeRuns(reservation: Reservation, wanted: number): [first: number, count: number][] {
  const runs: [number, number][] = [];
  for (let count = reservation.take(wanted); count > 0; count = reservation.take(wanted)) {
    runs.push([reservation.taken, count]);
  }
  return runs;
}

describe("Reservation", () => {
  it("has nothing at first", () => {
    const reservation = new Reservation(writerState().state);
    expect(reservation.take(1)).toBe(0);
    expect(reservation.take(Number.MAX_SAFE_INTEGER)).toBe(0);
    expect(reservation.clusters).toBe(0);
    expect(reservation.isLow).toBe(false);
    expect(reservation.room).toBe(RESERVED_MAX);
    expect(reservation.takeAll()).toEqual([]);
  });

  it("gives out adjacent clusters, never across the end of a run", () => {
    const reservation = new Reservation(writerState().state);
    reservation.add([
      { first: 10, count: 5 },
      { first: 100, count: 1 },
      { first: 200, count: 4 },
    ]);
    expect(reservation.clusters).toBe(10);
    expect(takeRuns(reservation, 3)).toEqual([
      [10, 3],
      [13, 2],
      [100, 1],
      [200, 3],
      [203, 1],
    ]);
    expect(reservation.clusters).toBe(0);
    expect(reservation.room).toBe(RESERVED_MAX);
  });

  it("is low when less than half of the last one is left", () => {
    const reservation = new Reservation(writerState().state);
    reservation.add([{ first: 0, count: 10 }]);
    expect(reservation.isLow).toBe(false);
    reservation.take(5);
    expect(reservation.isLow).toBe(false);
    reservation.take(1);
    expect(reservation.isLow).toBe(true);
    reservation.add([{ first: 50, count: 100 }]);
    expect(reservation.isLow).toBe(false);
  });

  it("has room for so many runs", () => {
    const reservation = new Reservation(writerState().state);
    const runs = Array.from({ length: RESERVED_MAX }, (_, index) => ({
      first: index * 10,
      count: 2,
    }));
    reservation.add(runs.slice(0, 100));
    expect(reservation.room).toBe(RESERVED_MAX - 100);
    reservation.add(runs.slice(100));
    expect(reservation.room).toBe(0);
    expect(reservation.takeAll()).toEqual(runs);
    expect(reservation.room).toBe(RESERVED_MAX);
  });

  it("counts what was taken, for all threads", () => {
    const { state } = writerState();
    const [one, other] = [new Reservation(state), new Reservation(state)];
    one.add([{ first: 7, count: 3 }]);
    expect(other.take(2)).toBe(2);
    expect(other.taken).toBe(7);
    expect(one.take(2)).toBe(1);
    expect(one.taken).toBe(9);
    expect(state.get(NUMBER.taken)).toBe(3);
  });

  it("gives each cluster out once, whatever the order", () => {
    const random = new Random("reservation");
    const reservation = new Reservation(writerState().state);
    const added: Run[] = [];
    const taken: Run[] = [];
    for (let round = 0; round < 500; round++) {
      if (reservation.room > 10 && random.below(4) === 0) {
        const last = added.at(-1) ?? { first: 2 ** 40, count: 0 };
        const runs = randomRuns(random, last.first + last.count);
        reservation.add(runs);
        added.push(...runs);
      }
      const count = reservation.take(random.between(1, 6));
      taken.push({ first: reservation.taken, count });
      expect(reservation.clusters).toBe(clustersOf(added).length - clustersOf(taken).length);
    }
    taken.push(...reservation.takeAll());
    expect(clustersOf(taken)).toEqual(clustersOf(added));
  });
});
