/**
 * Streaming in a mount: the upkeep thread copies what images lack, a step at a time, so that it still hears of
 * threads that need maintenance, and of the end. While somebody uses the mount it leaves him most of the
 * time. At the end the image lets go of its backing files, in all threads, and their files are closed.
 */

import { RateLimit, RateMeter } from "../block/copy-rate.ts";
import type { Disk } from "../block/disk.ts";
import { refuseDependentSnapshots } from "../block/snapshot-dependence.ts";
import { StreamJob } from "../block/stream-job.ts";
import { planStream } from "../block/stream-plan.ts";
import { printable, TsimgfsError } from "../errors.ts";
import { setBackingFile } from "../formats/formats.ts";
import { LocalFile } from "../storage/local-file.ts";
import { countRequests } from "../threads/counters.ts";
import type { RequestProgress } from "../threads/request-progress.ts";
import { StreamState } from "../threads/stream-state.ts";
import { writeLine } from "../trace.ts";
import type { DeviceDescription } from "../tree/description.ts";

/** How long to pause after a step while requests come in, in units of the step: it gets a fifth of the time. */
const PAUSE_FACTOR = 4;
/** And at least, ms: who reads sees to it that the next request comes within that. */
const PAUSE_MIN_MS = 2;

export interface StreamJobsContext {
  readonly devices: readonly DeviceDescription[];
  /** Of `createStreamStates`. */
  readonly states: SharedArrayBuffer;
  /** The counters of all threads. */
  readonly counters: SharedArrayBuffer;
  readonly progress: RequestProgress;
  /** This thread's disk of a device that is written to. */
  readonly diskOf: (device: number) => Disk | undefined;
  /** Closes the files of what was below an image, which no thread uses any more. */
  readonly closeBacking: (device: number) => void;
}

export class StreamJobs {
  readonly #context: StreamJobsContext;
  readonly #jobs = new Map<number, RunningJob>();
  #isStopped = false;

  constructor(context: StreamJobsContext) {
    this.#context = context;
  }

  /** Look at the state of a device: somebody has changed it. */
  wake(device: number): void {
    if (this.#isStopped) return;
    const job = this.#jobs.get(device) ?? this.#make(device);
    job?.wake();
  }

  /**
   * Start to stream all devices that can be. Returns what the user should know of the others, a line each.
   *
   * @param limit bytes a second, of each; undefined: none
   */
  startAll(limit: number | undefined): readonly string[] {
    return this.#context.devices.flatMap(({ imagePath, layers }, device) => {
      const disk = this.#context.diskOf(device);
      try {
        if (disk === undefined) return [];
        planStream(layers, undefined);
        disk.inspect(() => refuseDependentSnapshots(disk.chain.image));
      } catch (error) {
        if (!(error instanceof TsimgfsError)) throw error;
        return [printable(`${imagePath}: warning: is not streamed: ${error.reason}`)];
      }
      new StreamState(this.#context.states, device).start(limit);
      this.wake(device);
      return [];
    });
  }

  /** End all jobs between two steps. */
  stop(): void {
    this.#isStopped = true;
    for (const job of this.#jobs.values()) job.stop();
  }

  #make(device: number): RunningJob | undefined {
    const { devices, states, counters, progress, diskOf, closeBacking } = this.#context;
    const description = devices[device];
    const disk = diskOf(device);
    if (description === undefined || disk === undefined) return undefined;
    const job = new RunningJob({
      description,
      disk,
      state: new StreamState(states, device),
      progress,
      countRequests: () => countRequests(counters),
      closeBacking: () => closeBacking(device),
    });
    this.#jobs.set(device, job);
    return job;
  }
}

interface JobContext {
  readonly description: DeviceDescription;
  readonly disk: Disk;
  readonly state: StreamState;
  readonly progress: RequestProgress;
  readonly countRequests: () => number;
  readonly closeBacking: () => void;
}

/** The streaming of one device. */
class RunningJob {
  readonly #context: JobContext;
  readonly #limit = new RateLimit(undefined);
  #job: StreamJob | undefined;
  #meter = new RateMeter(0, 0);
  #requests = 0;
  #immediate: NodeJS.Immediate | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(context: JobContext) {
    this.#context = context;
  }

  /** Go on at once, as the state says. */
  wake(): void {
    this.stop();
    const { state, disk, description } = this.#context;
    if (state.name === "idle" || state.name === "failed") this.#job = undefined;
    if (state.name !== "running") return;
    try {
      disk.inspect(() => refuseDependentSnapshots(disk.chain.image));
    } catch (error) {
      this.#fail(error);
      return;
    }
    this.#limit.rate = state.limit;
    this.#job ??= new StreamJob(disk, description.layers.length);
    this.#meter = new RateMeter(performance.now(), this.#job.copied);
    this.#immediate = setImmediate(this.#turn);
  }

  stop(): void {
    clearImmediate(this.#immediate);
    clearTimeout(this.#timer);
  }

  readonly #turn = (): void => {
    this.#context.progress.during(() => this.#step());
  };

  #step(): void {
    const job = this.#job;
    if (job === undefined || this.#context.state.name !== "running") return;
    const start = performance.now();
    const before = job.copied;
    try {
      const isCopied = job.step();
      this.#show(job);
      if (isCopied) this.#finish();
    } catch (error) {
      this.#fail(error);
    }
    if (this.#context.state.name !== "running") return;
    const end = performance.now();
    const pauseMs = Math.max(
      this.#limit.pauseAfter(job.copied - before, start, end),
      this.#pauseForOthers(end - start),
    );
    if (pauseMs > 0) this.#timer = setTimeout(this.#turn, pauseMs);
    else this.#immediate = setImmediate(this.#turn);
  }

  /** ms; 0 while nobody uses the mount. */
  #pauseForOthers(stepMs: number): number {
    const requests = this.#context.countRequests();
    const isIdle = requests === this.#requests;
    this.#requests = requests;
    return isIdle ? 0 : Math.max(PAUSE_MIN_MS, PAUSE_FACTOR * stepMs);
  }

  #show({ done, total, copied }: StreamJob): void {
    const rate = Math.round(this.#meter.rateAt(performance.now(), copied));
    this.#context.state.progress = { done, total, copied, rate };
  }

  /** All is copied: the image lets go of what is below. */
  #finish(): void {
    const { disk, state, description, closeBacking } = this.#context;
    const [top] = description.layers;
    if (top === undefined) throw new RangeError("a chain has at least one image");
    disk.dropBacking(() => {
      refuseDependentSnapshots(disk.chain.image);
      const length = new LocalFile(top.file).currentLength();
      const storage = new LocalFile({ ...top.file, length });
      setBackingFile(top.layout.format, storage, undefined);
    });
    state.end("done");
    this.#job = undefined;
    writeLine(printable(`tsimgfs: ${top.file.path}: streamed, it has no backing file any more`));
    closeBacking();
  }

  #fail(error: unknown): void {
    const { state, description } = this.#context;
    if (state.name !== "done") state.end("failed");
    this.#job = undefined;
    const reason = error instanceof Error ? error.message : String(error);
    writeLine(printable(`tsimgfs: ${description.imagePath}: streaming failed: ${reason}`));
  }
}
