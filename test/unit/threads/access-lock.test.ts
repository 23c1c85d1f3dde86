/** The reader-writer lock between real threads: who excludes is alone, and nobody waits for ever. */

import { describe, expect, it } from "vitest";
import { AccessLock, createAccessLock } from "../../../src/threads/access-lock.ts";
import { asRecord, numberIn } from "../../support/json.ts";
import { SEED } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { bundleWorker, runWorker } from "../bundled-worker.ts";
import type { AccessLockWorkerData } from "./access-lock-worker.ts";

const SCRIPT = bundleWorker(new URL("./access-lock-worker.ts", import.meta.url));
const WORDS = 64;

interface Outcome {
  readonly excluded: number;
  readonly shared: number;
  readonly torn: number;
}

type Work = Pick<AccessLockWorkerData, "excludes" | "rounds" | "others">;

/** Starts a thread for each of `works`, with slots of their own. */
async function startThreads(
  lock: SharedArrayBuffer,
  memory: SharedArrayBuffer,
  works: readonly Work[],
): Promise<Promise<Outcome>[]> {
  const script = await SCRIPT;
  return works.map(async (work, slot) => {
    const data: AccessLockWorkerData = { lock, memory, slot, seed: SEED, ...work };
    const result = asRecord(await runWorker(script, data));
    return {
      excluded: numberIn(result, "excluded"),
      shared: numberIn(result, "shared"),
      torn: numberIn(result, "torn"),
    };
  });
}

async function runThreads(works: readonly Work[]): Promise<{
  outcomes: Outcome[];
  words: Int32Array;
}> {
  const memory = new SharedArrayBuffer(WORDS * 4);
  const lock = createAccessLock(works.length);
  const outcomes = await Promise.all(await startThreads(lock, memory, works));
  return { outcomes, words: new Int32Array(memory) };
}

const pause = (): Promise<unknown> => new Promise((resolve) => setTimeout(resolve, 100));

describe("AccessLock", () => {
  it.each([0, 1, 3, 50, 100])(
    "keeps all others out of what %i percent of the turns change",
    async (excludes) => {
      const work = { excludes, rounds: byScale(20_000, 400_000) };
      const { outcomes, words } = await runThreads(Array(4).fill(work));
      expect(outcomes.map(({ torn }) => torn)).toEqual([0, 0, 0, 0]);
      const total = outcomes.reduce((sum, { excluded }) => sum + excluded, 0);
      expect(new Set(words.subarray(2))).toEqual(new Set([total]));
    },
  );

  it("lets those who share in, however often others exclude", async () => {
    const greedy = { excludes: 100, others: 1 };
    const { outcomes } = await runThreads([{ excludes: 0, rounds: 300 }, greedy, greedy]);
    expect(outcomes[0]).toEqual({ excluded: 0, shared: 300, torn: 0 });
  });

  it("lets one who excludes in, however often others share", async () => {
    const greedy = { excludes: 0, others: 1 };
    const { outcomes } = await runThreads([{ excludes: 100, rounds: 300 }, greedy, greedy, greedy]);
    expect(outcomes[0]).toEqual({ excluded: 300, shared: 0, torn: 0 });
  });

  it("is shared by any number of threads at the same time", async () => {
    const memory = new SharedArrayBuffer(WORDS * 4);
    const memoryOfLock = createAccessLock(3);
    const lock = new AccessLock(memoryOfLock, 2);
    lock.lockShared();
    const sharing = { excludes: 0, rounds: 100 };
    const done = await startThreads(memoryOfLock, memory, [sharing, sharing]);
    expect((await Promise.all(done)).map(({ shared }) => shared)).toEqual([100, 100]);
    lock.unlockShared();
  });

  it.each([
    { who: "who shares", excludes: 0 },
    { who: "who excludes", excludes: 100 },
  ])("wakes one $who when the one who excludes ends", async ({ excludes }) => {
    const memory = new SharedArrayBuffer(WORDS * 4);
    const memoryOfLock = createAccessLock(2);
    const lock = new AccessLock(memoryOfLock, 1);
    lock.lockExclusive();
    const [done] = await startThreads(memoryOfLock, memory, [{ excludes, rounds: 1 }]);
    const early = await Promise.race([done, pause().then(() => "waiting")]);
    expect(early).toBe("waiting");
    lock.unlockExclusive();
    expect(await done).toMatchObject({ torn: 0, [excludes === 0 ? "shared" : "excluded"]: 1 });
  });

  it("wakes one who excludes when the last one who shares ends", async () => {
    const memory = new SharedArrayBuffer(WORDS * 4);
    const memoryOfLock = createAccessLock(3);
    const [first, second] = [new AccessLock(memoryOfLock, 1), new AccessLock(memoryOfLock, 2)];
    first.lockShared();
    second.lockShared();
    const [done] = await startThreads(memoryOfLock, memory, [{ excludes: 100, rounds: 1 }]);
    for (const lock of [first, second]) {
      const early = await Promise.race([done, pause().then(() => "waiting")]);
      expect(early).toBe("waiting");
      expect(new Int32Array(memory)[2]).toBe(0);
      lock.unlockShared();
    }
    expect(await done).toMatchObject({ excluded: 1, torn: 0 });
  });

  it("counts structural changes, which all threads see", () => {
    const memory = createAccessLock(2);
    const [first, second] = [new AccessLock(memory, 0), new AccessLock(memory, 1)];
    const before = second.generation;
    first.lockExclusive();
    first.bumpGeneration();
    first.unlockExclusive();
    expect(second.generation).not.toBe(before);
    expect(first.generation).toBe(second.generation);
    first.lockShared();
    first.unlockShared();
    expect(first.generation).toBe(second.generation);
  });

  it("is free again after each use, with all its memory but the generation as before", () => {
    const memory = createAccessLock(3);
    const before = [...new Int32Array(memory)];
    const lock = new AccessLock(memory, 1);
    for (let round = 0; round < 3; round++) {
      lock.lockShared();
      lock.unlockShared();
      lock.lockExclusive();
      lock.unlockExclusive();
      lock.resizing.lock();
      lock.resizing.unlock();
      expect([...new Int32Array(memory)]).toEqual(before);
    }
  });
});
