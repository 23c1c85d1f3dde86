/** A thread that does not get on is told from one that does. */

import { expect, it } from "vitest";
import { createHeartbeat, Heartbeat, HeartbeatWatch } from "../../../src/threads/heartbeat.ts";

it("a heartbeat is silent since the first look that found no beat", () => {
  const memory = createHeartbeat();
  const heartbeat = new Heartbeat(memory);
  const watch = new HeartbeatWatch(memory);
  expect(watch.silence(1000)).toBe(0);
  expect(watch.silence(1500)).toBe(500);
  heartbeat.beat();
  heartbeat.beat();
  expect(watch.silence(2500)).toBe(0);
  expect(watch.silence(9000)).toBe(6500);
  heartbeat.beat();
  expect(watch.silence(9001)).toBe(0);
});
