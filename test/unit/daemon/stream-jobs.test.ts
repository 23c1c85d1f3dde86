// The streaming of a mount, on a clock of the test: when it steps, and when it leaves the time to others.

import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it, vi } from "vitest";
import { type AttachFile, attachDisk } from "../../../src/block/attach-disk.ts";
import { closeBelow, closeChain, openChain } from "../../../src/block/open-chain.ts";
import { StreamJobs } from "../../../src/daemon/stream-jobs.ts";
import { StorageError } from "../../../src/errors.ts";
import { ClusterCache } from "../../../src/formats/compression/cluster-cache.ts";
import { LocalFile } from "../../../src/storage/local-file.ts";
import {
  countRequest,
  createCounters,
  OPERATION,
  threadCounters,
} from "../../../src/threads/counters.ts";
import { createRequestProgress, RequestProgress } from "../../../src/threads/request-progress.ts";
import { createStreamStates, StreamState } from "../../../src/threads/stream-state.ts";
import { withMemoryScratch } from "../../support/crash-scratch.ts";
import { createImage } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { expectDisk } from "../../support/write-images.ts";

const MIB = 2 ** 20;
const SIZE = 16 * MIB;

interface Mounted {
  readonly jobs: StreamJobs;
  readonly state: StreamState;
  /** Somebody uses the device. */
  readonly use: () => void;
  /** Backing files were closed so often. */
  readonly closed: () => number;
  /** What the daemon would have logged. */
  readonly log: () => string;
  /** Let reads of the backing file fail, or not. */
  readonly fail: (isFailing: boolean) => void;
}

/** An image over 16 MiB of data, as a mount has it, without the mount. */
async function withMounted(body: (mounted: Mounted) => void): Promise<void> {
  await withMemoryScratch("jobs", async (directory) => {
    const base = join(directory, "base.raw");
    fs.writeFileSync(base, new Random("stream jobs").bytes(SIZE));
    const path = join(directory, "image.qcow2");
    await createImage(path, "qcow2", { backing: { file: base, format: "raw" } });
    const policy = { copyOnRead: false, growable: false };
    let chain = openChain(path, {
      format: undefined,
      backingPolicy: "any",
      forceShare: false,
      writing: { policy: { ...policy, detectZeroes: "on", discard: "unmap" }, threads: 1 },
    });
    let isFailing = false;
    const attachFile: AttachFile = (file) => {
      const local = new LocalFile(file);
      const readAt = local.readAt.bind(local);
      if (file.path === base) {
        local.readAt = (...call) => {
          if (isFailing) throw new StorageError("EIO", base, "read failed");
          readAt(...call);
        };
      }
      return local;
    };
    const thread = { slot: 0, requestMaintenance: undefined };
    const disk = attachDisk(chain, { clusterCache: new ClusterCache() }, thread, attachFile);
    const { layers, writing } = chain;
    const states = createStreamStates(1);
    const counters = createCounters(1, 1);
    const own = threadCounters(counters, { thread: 0, device: 0, devices: 1 });
    let closed = 0;
    const device = { name: "image", imagePath: path, allocatedSize: 0, modifiedAt: 0 };
    const jobs = new StreamJobs({
      devices: [{ ...device, layers, writing }],
      states,
      counters,
      progress: new RequestProgress(createRequestProgress(1), 0),
      diskOf: () => disk,
      closeBacking: () => {
        chain = closeBelow(chain);
        closed++;
      },
    });
    const timers = ["setTimeout", "clearTimeout", "setImmediate", "clearImmediate"] as const;
    vi.useFakeTimers({ toFake: [...timers, "performance"] });
    const messages: string[] = [];
    vi.spyOn(fs, "writeSync").mockImplementation((_fd, text) => {
      messages.push(text);
      return text.length;
    });
    try {
      body({
        jobs,
        state: new StreamState(states, 0),
        use: () => {
          countRequest(own, OPERATION.read, 0, 0);
        },
        closed: () => closed,
        log: () => messages.join(""),
        fail: (value) => {
          isFailing = value;
        },
      });
    } finally {
      vi.restoreAllMocks();
      vi.useRealTimers();
      jobs.stop();
      disk.close();
      closeChain(chain);
    }
    await expectDisk(path, "qcow2", base);
  });
}

/** Goes on until the state is another one; `between` is done before each step. Returns the steps. */
function runWhile({ state }: Mounted, name: string, between: () => void): number {
  let steps = 0;
  while (state.name === name && vi.getTimerCount() > 0) {
    between();
    vi.advanceTimersToNextTimer();
    steps++;
  }
  return steps;
}

describe("the streaming of a mount", () => {
  it("takes all the time while nobody uses it", async () => {
    await withMounted((mounted) => {
      const start = performance.now();
      expect(mounted.jobs.startAll(undefined)).toEqual([]);
      const steps = runWhile(mounted, "running", () => undefined);
      expect(mounted.state.name).toBe("done");
      expect(mounted.state.progress).toMatchObject({ done: SIZE, total: SIZE, copied: SIZE });
      expect(steps).toBe(SIZE / (2 * MIB));
      // The clock of the test gives each step a millisecond.
      expect(performance.now() - start).toBeLessThan(steps);
      expect(mounted.closed()).toBe(1);
      expect(vi.getTimerCount()).toBe(0);
      expect(mounted.log()).toMatch(/image.qcow2: streamed, it has no backing file any more\n$/);
    });
  });

  it("pauses after each step while somebody does", async () => {
    await withMounted((mounted) => {
      const start = performance.now();
      mounted.jobs.startAll(undefined);
      const steps = runWhile(mounted, "running", mounted.use);
      expect(mounted.state.name).toBe("done");
      expect(performance.now() - start).toBeGreaterThanOrEqual(2 * (steps - 2));
    });
  });

  it("keeps to a limit, which may change meanwhile", async () => {
    await withMounted((mounted) => {
      const start = performance.now();
      mounted.jobs.startAll(MIB);
      while (mounted.state.progress.done < SIZE / 2) vi.advanceTimersToNextTimer();
      // Three waits of two seconds each have passed.
      expect(performance.now() - start).toBeCloseTo(6000, -2);
      mounted.state.start(undefined);
      mounted.jobs.wake(0);
      runWhile(mounted, "running", () => undefined);
      expect(mounted.state.name).toBe("done");
      expect(performance.now() - start).toBeCloseTo(6000, -2);
    });
  });

  it("stops when it is told to, and goes on where it was", async () => {
    await withMounted((mounted) => {
      const { state, jobs } = mounted;
      jobs.startAll(undefined);
      vi.advanceTimersToNextTimer();
      vi.advanceTimersToNextTimer();
      state.pause();
      jobs.wake(0);
      const { done } = state.progress;
      vi.advanceTimersByTime(60_000);
      expect([state.name, state.progress.done]).toEqual(["paused", done]);
      state.start(undefined);
      jobs.wake(0);
      vi.advanceTimersToNextTimer();
      expect(state.progress.done).toBe(done + 2 * MIB);
      // Who sets the state is obeyed also before the main thread hears of it.
      state.cancel();
      vi.advanceTimersByTime(60_000);
      expect([state.name, state.progress.done]).toEqual(["idle", done + 2 * MIB]);
      state.start(undefined);
      jobs.wake(0);
      jobs.stop();
      vi.advanceTimersByTime(60_000);
      expect(state.progress.done).toBe(done + 2 * MIB);
      expect(mounted.closed()).toBe(0);
    });
  });

  it("fails with a reason, and can be started again", async () => {
    await withMounted((mounted) => {
      const { state, jobs } = mounted;
      jobs.startAll(undefined);
      vi.advanceTimersToNextTimer();
      mounted.fail(true);
      runWhile(mounted, "running", () => undefined);
      expect(state.name).toBe("failed");
      expect(mounted.log()).toMatch(/image.qcow2: streaming failed: .*base.raw: read failed\n$/);
      mounted.fail(false);
      state.start(undefined);
      jobs.wake(0);
      runWhile(mounted, "running", () => undefined);
      expect(state.name).toBe("done");
      // What was there before was not copied again.
      expect(state.progress.copied).toBe(SIZE - 2 * MIB);
      // Nothing is left to start.
      jobs.wake(0);
      expect(vi.getTimerCount()).toBe(0);
    });
  });
});
