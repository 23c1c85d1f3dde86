import { describe, expect, it } from "vitest";
import { createStreamStates, StreamState } from "../../../src/threads/stream-state.ts";

function twoDevices(): readonly [StreamState, StreamState, StreamState] {
  const memory = createStreamStates(2);
  return [new StreamState(memory, 0), new StreamState(memory, 1), new StreamState(memory, 0)];
}

describe("the state of streaming", () => {
  it("is seen by all who share it, and is another one for each device", () => {
    const [first, second, same] = twoDevices();
    expect(first.start(100)).toBe(true);
    expect([first.name, second.name, same.name]).toEqual(["running", "idle", "running"]);
    expect([second.limit, same.limit]).toEqual([undefined, 100]);
    const progress = { done: 2 ** 40, total: 2 ** 41, copied: 3, rate: 4.5 };
    first.progress = progress;
    expect(same.progress).toEqual(progress);
    expect(second.progress).toEqual({ done: 0, total: 0, copied: 0, rate: 0 });
  });

  it("goes on after a pause, and keeps the limit of the last start", () => {
    const [state] = twoDevices();
    expect(state.pause()).toBe(false);
    state.start(7);
    expect([state.pause(), state.pause(), state.name]).toEqual([true, true, "paused"]);
    expect([state.start(undefined), state.name, state.limit]).toEqual([true, "running", undefined]);
    expect([state.cancel(), state.cancel(), state.name]).toEqual([true, true, "idle"]);
  });

  it("can be started again after a failure, but not after the end", () => {
    const [state] = twoDevices();
    state.start(undefined);
    state.end("failed");
    expect([state.pause(), state.name]).toEqual([false, "failed"]);
    expect([state.start(undefined), state.name]).toEqual([true, "running"]);
    state.end("done");
    expect([state.start(undefined), state.pause(), state.cancel()]).toEqual([false, false, false]);
    expect(state.name).toBe("done");
  });
});
