/**
 * Which threads of a crew wait for work: one, if that is enough. Each thread has its own compiled code, caches
 * and buffers, so with fewer threads each is warm sooner, and the rest costs no memory. The others are
 * parked, and one of those watches: every other millisecond it looks whether work waits while nobody has time
 * for it. If that stays so, and not because the processors are busy with what is being done, it joins; the
 * next one watches from then on. It sleeps while nobody works.
 *
 *     word 0   threads that wait for work, or are about to
 *     word 1   the watch: nobody's, somebody's, or of somebody who sleeps
 *     word 2   counts calls of parked threads
 *     word 3   1: there is no more work
 */

import { availableParallelism } from "node:os";

const WAITING = 0;
const WATCH = 1;
const CALLS = 2;
const ENDED = 3;
const WORDS = 4;

/** Values of the word WATCH. */
const NOBODY = 0;
const AWAKE = 1;
const ASLEEP = 2;

const LOOK_EVERY_MS = 2;
/** Work that waits at so many looks in a row is too much for those who work. */
const LOOKS_WITH_WORK = 5;
/** Whoever looked in vain so often sleeps until there is work again. */
const LOOKS_IN_VAIN = 50;
/** One more thread gains something while this process has less than this share of its processors. */
const BUSY_SHARE = 0.6;
/** A thread that was one too many so often in a row is parked. */
const PATIENCE = 1000;

/** Memory for a crew. */
export function createThreadCrew(): SharedArrayBuffer {
  return new SharedArrayBuffer(WORDS * Int32Array.BYTES_PER_ELEMENT);
}

export class ThreadCrew {
  readonly #words: Int32Array;
  readonly #hasWork: () => boolean;
  /** Threads that waited when this one joined them. */
  #others = 0;
  /** How often in a row this thread was one too many; at first it is not patient. */
  #surplus = PATIENCE;
  #startMs = 0;
  #startUsage = { user: 0, system: 0 };

  /** @param hasWork whether work waits, or there is no more */
  constructor(memory: SharedArrayBuffer, hasWork: () => boolean) {
    this.#words = new Int32Array(memory);
    this.#hasWork = hasWork;
  }

  /** This thread has time for work: it waits already, or will at once. */
  join(): void {
    this.#others = Atomics.add(this.#words, WAITING, 1);
  }

  /** Having joined, before waiting; returns when this thread is needed. */
  rest(): void {
    if (this.#others === 0) {
      this.#surplus = 0;
    } else if (this.#surplus < PATIENCE) {
      this.#surplus++;
    } else {
      this.#park();
      this.#surplus = 0;
    }
  }

  /** This thread has got work; or, waiting as it was, it waits no more. */
  leave(): void {
    const words = this.#words;
    // Whoever is the last one to wait wakes the one who watches.
    if (Atomics.sub(words, WAITING, 1) > 1 || Atomics.load(words, WATCH) !== ASLEEP) return;
    if (Atomics.compareExchange(words, WATCH, ASLEEP, AWAKE) === ASLEEP) {
      Atomics.notify(words, WATCH);
    }
  }

  /** There is no more work: parked threads go and see. */
  end(): void {
    const words = this.#words;
    Atomics.store(words, ENDED, 1);
    Atomics.notify(words, ENDED);
    Atomics.add(words, CALLS, 1);
    Atomics.notify(words, CALLS);
    if (Atomics.compareExchange(words, WATCH, ASLEEP, AWAKE) === ASLEEP) {
      Atomics.notify(words, WATCH);
    }
  }

  /** Stop waiting, until this thread is needed; then it has joined. */
  #park(): void {
    const words = this.#words;
    this.leave();
    for (;;) {
      const calls = Atomics.load(words, CALLS);
      if (Atomics.load(words, ENDED) !== 0) return;
      if (Atomics.compareExchange(words, WATCH, NOBODY, AWAKE) === NOBODY) break;
      Atomics.wait(words, CALLS, calls);
    }
    this.#watch();
    this.join();
    Atomics.store(words, WATCH, NOBODY);
    Atomics.add(words, CALLS, 1);
    Atomics.notify(words, CALLS, 1);
  }

  /** Returns when work waits for this thread, or there is no more. */
  #watch(): void {
    const words = this.#words;
    let withWork = 0;
    let inVain = 0;
    while (Atomics.load(words, ENDED) === 0) {
      const hasWaiter = Atomics.load(words, WAITING) > 0;
      if (hasWaiter || !this.#hasWork()) {
        withWork = 0;
        inVain++;
      } else {
        inVain = 0;
        if (withWork === 0) this.#startMeasuring();
        if (withWork++ === LOOKS_WITH_WORK) {
          if (this.#hasProcessor()) return;
          withWork = 0;
        }
      }
      if (inVain >= LOOKS_IN_VAIN && hasWaiter) {
        this.#sleep();
        inVain = 0;
      } else Atomics.wait(words, ENDED, 0, LOOK_EVERY_MS);
    }
  }

  #startMeasuring(): void {
    this.#startMs = performance.now();
    this.#startUsage = process.cpuUsage();
  }

  /** Whether, since `startMeasuring`, this process left its processors something to do. */
  #hasProcessor(): boolean {
    const { user, system } = process.cpuUsage(this.#startUsage);
    const share = (user + system) / 1000 / (performance.now() - this.#startMs);
    // Asked for each time: threads can be bound to other processors at any time.
    return share < BUSY_SHARE * availableParallelism();
  }

  /** Until somebody works. */
  #sleep(): void {
    const words = this.#words;
    Atomics.store(words, WATCH, ASLEEP);
    // Whoever took the last one's place since either saw that, or is seen here.
    if (Atomics.load(words, WAITING) > 0 && Atomics.load(words, ENDED) === 0) {
      Atomics.wait(words, WATCH, ASLEEP);
    }
    Atomics.store(words, WATCH, AWAKE);
  }
}
