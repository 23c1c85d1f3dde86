/** The mutex between real threads: no update is lost, none is seen half done. */

import { describe, expect, it } from "vitest";
import { Mutex } from "../../../src/threads/mutex.ts";
import { bundleWorker, runWorker } from "../bundled-worker.ts";
import type { MutexWorkerData } from "./mutex-worker.ts";

const SCRIPT = bundleWorker(new URL("./mutex-worker.ts", import.meta.url));

describe("Mutex", () => {
  it("leaves its word 0 after lock and unlock, so that it can be taken again", () => {
    const words = new Int32Array(new SharedArrayBuffer(16));
    const mutex = new Mutex(words, 2);
    for (let round = 0; round < 3; round++) {
      mutex.lock();
      expect(words[2]).not.toBe(0);
      mutex.unlock();
      expect([...words]).toEqual([0, 0, 0, 0]);
    }
  });

  it.each([
    { threads: 6, ways: ["lock"] },
    { threads: 2, ways: ["lockActively"] },
    { threads: 6, ways: ["lock", "lockActively"] },
  ] as const)(
    "lets one of $threads threads at a time into the critical section: $ways",
    async ({ threads, ways }) => {
      const rounds = 20_000;
      const memory = new SharedArrayBuffer(64 * 4);
      const script = await SCRIPT;
      const torn = await Promise.all(
        Array.from({ length: threads }, (_, thread) => {
          const lock = ways[thread % ways.length] ?? "lock";
          const data: MutexWorkerData = { memory, rounds, lock };
          return runWorker(script, data);
        }),
      );
      expect(torn).toEqual(Array(threads).fill(0));
      const words = new Int32Array(memory);
      expect(words[0]).toBe(0);
      expect(new Set(words.subarray(1))).toEqual(new Set([threads * rounds]));
    },
  );

  it.each(["lock", "lockActively"] as const)("wakes a thread that waits: %s", async (lock) => {
    const memory = new SharedArrayBuffer(8);
    const words = new Int32Array(memory);
    const mutex = new Mutex(words, 0);
    mutex.lock();
    const data: MutexWorkerData = { memory, rounds: 1, lock };
    const done = runWorker(await SCRIPT, data);
    const early = await Promise.race([
      done.then(() => "entered"),
      new Promise((resolve) => setTimeout(resolve, 100, "waiting")),
    ]);
    expect(early).toBe("waiting");
    expect(words[1]).toBe(0);
    mutex.unlock();
    expect(await done).toBe(0);
    expect(words[1]).toBe(1);
  });
});
