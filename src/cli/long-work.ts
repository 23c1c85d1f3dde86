/**
 * Running what takes long: in steps, between which signals are heard of, what was done becomes durable
 * from time to time, and who watches is told how far it is.
 */

import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { RateMeter } from "../block/copy-rate.ts";
import { ProgressBar } from "./progress-bar.ts";
import { heardSignal, hearStopSignals, type StopSignal } from "./stop-signals.ts";

/** What is done becomes durable at least so often, ms: the rest may be lost if we are killed. */
const FLUSH_INTERVAL_MS = 5000;
/** Who watches is told at most so often, ms; the bar on the terminal goes on in between. */
const TELL_INTERVAL_MS = 1000;
/** Waits are cut into pieces of this many ms: signals end them. */
const SLEEP_MAX_MS = 100;

/** Work that can end after any of its steps. */
export interface LongWork {
  /** Bytes, or whatever the work counts, that are done. */
  readonly done: number;
  /** What `done` comes to; it may change. */
  readonly total: number;
  /**
   * Work for about a tenth of a second at the most.
   *
   * @returns whether the end is reached
   */
  step(): boolean | Promise<boolean>;
  /** Make durable what was done; it is called every few seconds, and not at the end. */
  flush?(): void;
  /**
   * How long to wait after the step that took from `startMs` to `endMs`, both as performance.now counts.
   *
   * @returns ms, 0 or more
   */
  pauseAfter?(startMs: number, endMs: number): number;
}

/** How the work is shown. */
export interface LongWorkDisplay {
  /** Whether a bar is wanted; there is one on a terminal only. */
  readonly progress: boolean;
  /** Called about once a second while the work goes on: to print a line of JSON, say. */
  readonly tell?: (() => void) | undefined;
}

/**
 * Do steps until the end, or until a signal asks to stop. From here on such signals do not end the process:
 * whoever called tidies up in either case, and sets the exit status (`signalStatus`).
 *
 * @returns the signal that stopped it; undefined: the end is reached
 * @throws what a step throws, the bar being gone
 */
export async function runLongWork(
  work: LongWork,
  display: LongWorkDisplay,
): Promise<StopSignal | undefined> {
  return await new LongRun(work, display).run();
}

class LongRun {
  readonly #work: LongWork;
  readonly #display: LongWorkDisplay;
  readonly #bar: ProgressBar;
  readonly #meter: RateMeter;
  #flushedAt = performance.now();
  #toldAt = performance.now();

  constructor(work: LongWork, display: LongWorkDisplay) {
    this.#work = work;
    this.#display = display;
    this.#bar = new ProgressBar(display.progress);
    this.#meter = new RateMeter(performance.now(), work.done);
  }

  async run(): Promise<StopSignal | undefined> {
    hearStopSignals();
    let isDone = false;
    try {
      while (!isDone && heardSignal() === undefined) isDone = await this.#step();
    } finally {
      this.#bar.clear();
    }
    return isDone ? undefined : heardSignal();
  }

  async #step(): Promise<boolean> {
    const start = performance.now();
    const isDone = await this.#work.step();
    const end = performance.now();
    if (end - this.#flushedAt > FLUSH_INTERVAL_MS) {
      this.#work.flush?.();
      this.#flushedAt = end;
    }
    this.#show(end);
    const wakeAt = end + (this.#work.pauseAfter?.(start, end) ?? 0);
    // Signals are heard of in between.
    await nextTurn();
    while (performance.now() < wakeAt && heardSignal() === undefined) {
      await sleep(Math.min(SLEEP_MAX_MS, wakeAt - performance.now()));
    }
    return isDone;
  }

  #show(now: number): void {
    const { done, total } = this.#work;
    this.#bar.draw({ done, total, rate: this.#meter.rateAt(now, done) });
    if (now - this.#toldAt < TELL_INTERVAL_MS) return;
    this.#toldAt = now;
    this.#display.tell?.();
  }
}
