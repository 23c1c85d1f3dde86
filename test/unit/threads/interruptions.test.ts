import { describe, expect, it } from "vitest";
import {
  createInterruptions,
  Interruptions,
  interruptAll,
} from "../../../src/threads/interruptions.ts";

/** Names as the kernel gives them: even, also where their low half is a negative number of 32 bits. */
const REQUESTS = [2, 0x7fff_fffe, 0x8000_0000, 0xffff_fffe];

describe("interruptions", () => {
  function twoThreads(): {
    memory: SharedArrayBuffer;
    worker: Interruptions;
    other: Interruptions;
  } {
    const memory = createInterruptions(2);
    return { memory, worker: new Interruptions(memory, 0), other: new Interruptions(memory, 1) };
  }

  it.each(REQUESTS)("meet the thread that works on request %i, and no other", (request) => {
    const { worker, other } = twoThreads();
    worker.begin(request);
    other.begin(request + 4);
    expect(worker.isWanted).toBe(true);
    other.interrupt(request);
    expect(worker.isWanted).toBe(false);
    expect(other.isWanted).toBe(true);
    worker.end();
    worker.begin(request + 2);
    expect(worker.isWanted).toBe(true);
  });

  it.each(REQUESTS)("that come before the work on request %i meet it as well", (request) => {
    const { worker, other } = twoThreads();
    other.interrupt(request);
    worker.begin(request);
    expect(worker.isWanted).toBe(false);
  });

  it("meet all when the daemon is to end", () => {
    const { memory, worker, other } = twoThreads();
    worker.begin(2);
    interruptAll(memory);
    other.begin(4);
    expect([worker.isWanted, other.isWanted]).toEqual([false, false]);
  });
});
