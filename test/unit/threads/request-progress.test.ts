/** Requests that come to no end are told from those that follow each other. */

import { describe, expect, it } from "vitest";
import {
  createRequestProgress,
  RequestProgress,
  StuckRequests,
} from "../../../src/threads/request-progress.ts";

describe("StuckRequests", () => {
  const memory = createRequestProgress(3);
  const threads = [0, 1, 2].map((thread) => new RequestProgress(memory, thread));
  const stuck = new StuckRequests(memory);

  it("tells for how long the oldest request has been seen under way", () => {
    expect(stuck.longest(1000)).toBe(0);
    threads[1]?.step();
    expect(stuck.longest(2000)).toBe(0);
    expect(stuck.longest(2500)).toBe(500);
    threads[2]?.step();
    expect(stuck.longest(3000)).toBe(1000);
    threads[1]?.step();
    expect(stuck.longest(4000)).toBe(1000);
  });

  it("takes a thread that has begun another one for one that gets on", () => {
    threads[2]?.step();
    threads[2]?.step();
    expect(stuck.longest(5000)).toBe(0);
    expect(stuck.longest(5600)).toBe(600);
    threads[2]?.step();
    expect(stuck.longest(9000)).toBe(0);
  });
});
