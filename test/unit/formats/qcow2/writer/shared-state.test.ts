/** What writers share: taken over from the header, seen by all threads. */

import { describe, expect, it } from "vitest";
import {
  createSharedState,
  NUMBER,
  SharedState,
  WORD,
} from "../../../../../src/formats/qcow2/writer/shared-state.ts";
import { Random } from "../../../../support/random.ts";
import { writerState } from "./writer-state.ts";

describe("createSharedState", () => {
  it("takes sizes and places over from the header", () => {
    const { built, layout, state } = writerState({ virtualSize: 5 * 1024 * 1024, l1Entries: 9 });
    expect(state.get(NUMBER.virtualSize)).toBe(5 * 1024 * 1024);
    expect(state.get(NUMBER.l1Offset)).toBe(built.region("l1").offset);
    expect(state.get(NUMBER.l1Size)).toBe(9);
    expect(state.get(NUMBER.refcountTableOffset)).toBe(built.region("refcount table").offset);
    expect(state.get(NUMBER.refcountTableClusters)).toBe(1);
    expect(state.get(NUMBER.freeHint)).toBe(0);
    expect(state.get(NUMBER.reservedClusters)).toBe(0);
    expect(layout.virtualSize).toBe(5 * 1024 * 1024);
    for (const word of Object.values(WORD)) expect(state.isSet(word)).toBe(false);
  });

  it("has its parts beside each other: none changes another", () => {
    const { layout } = writerState({ l1Entries: 100 });
    const memory = createSharedState(layout.header, layout.virtualSize);
    const [one, other] = [new SharedState(memory), new SharedState(memory)];
    for (const part of ["words", "numbers", "reserved", "frees"] as const) {
      const before = new Uint8Array(memory.slice(0));
      one[part].fill(1);
      expect([...other[part]].every((value) => value === 1)).toBe(true);
      const bytes = new Uint8Array(memory);
      const changed = bytes.reduce((sum, byte, at) => sum + (byte === before[at] ? 0 : 1), 0);
      expect(changed).toBeLessThanOrEqual(one[part].byteLength);
      one[part].fill(0);
    }
    expect([...other.zeroedTables()]).toEqual([]);
  });
});

describe("SharedState.zeroedTables", () => {
  it("are those that were noted, by all threads", () => {
    const { layout } = writerState({ l1Entries: 1000 });
    const memory = createSharedState(layout.header, layout.virtualSize);
    const random = new Random("zeroed tables");
    const noted = new Set([0, 31, 32, 63, 999]);
    for (let count = 0; count < 100; count++) noted.add(random.below(1000));
    for (const index of noted) new SharedState(memory).noteZeroed(index);
    expect([...new SharedState(memory).zeroedTables()]).toEqual([...noted].sort((a, b) => a - b));
  });

  it("leave out what the L1 table did not have at open", () => {
    const { layout } = writerState({ l1Entries: 2 });
    const state = new SharedState(createSharedState(layout.header, layout.virtualSize));
    for (const index of [2, 31, 32, 100, 2 ** 22]) state.noteZeroed(index);
    expect([...state.zeroedTables()].every((index) => index < 32)).toBe(true);
    state.noteZeroed(1);
    expect([...state.zeroedTables()]).toContain(1);
  });
});
