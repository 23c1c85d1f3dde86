/** Jobs of the engine that go on piece by piece, as long work of a command. Nothing is said of how far they are. */

import type { LongWork } from "./long-work.ts";

/** Pieces may be small: signals are heard of after so many ms. */
const STEP_MS = 50;

/** A job that may be given up after any of its pieces. */
export interface PieceJob {
  /** @returns whether the end is reached */
  step(): boolean;
  /** Make durable what was done. */
  flush(): void;
}

export class PiecesWork implements LongWork {
  readonly total = 1;
  done = 0;
  readonly #job: PieceJob;

  constructor(job: PieceJob) {
    this.#job = job;
  }

  step(): boolean {
    const end = performance.now() + STEP_MS;
    let isDone = false;
    while (!isDone && performance.now() < end) isDone = this.#job.step();
    if (isDone) this.done = this.total;
    return isDone;
  }

  flush(): void {
    this.#job.flush();
  }
}
