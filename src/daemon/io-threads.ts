/** The I/O threads of a mount as the main thread sees them. */

import type { Worker } from "node:worker_threads";
import { cloneQueue, type Session } from "../fuse/session.ts";
import {
  type IoThreadMessage,
  letEnd,
  letGo,
  type Served,
  startIoThread,
} from "./io-thread-start.ts";
import type { UpkeepRequests } from "./transport.ts";

/** The first thread, which was started before the mount was made. */
export interface FirstThread {
  readonly worker: Worker;
  readonly start: SharedArrayBuffer;
}

export class IoThreads {
  readonly #start: SharedArrayBuffer;
  readonly #upkeep: UpkeepRequests;
  readonly #first: Worker;
  readonly #ends: Promise<void>[] = [];
  #allStarted: Promise<void> = Promise.resolve();

  constructor({ worker, start }: FirstThread, upkeep: UpkeepRequests) {
    this.#start = start;
    this.#upkeep = upkeep;
    this.#first = worker;
    this.#add(worker);
  }

  /**
   * Let `count` threads serve the session of `fd`. Requests wait in the kernel for the first thread, which may
   * not have started yet; the others are started when that one serves.
   */
  serve(count: number, served: Served, fd: number, session: Session): void {
    this.#first.postMessage(served);
    const fds = Array.from({ length: count }, (_, thread) => (thread === 0 ? fd : cloneQueue(fd)));
    letGo(this.#start, { fds, dataMax: session.dataMax });
    this.#allStarted = firstServing(this.#first).then(() => this.#startOthers(count, served));
    // Whoever waits for the end handles a failure; until then it is not unhandled.
    this.#allStarted.catch(() => undefined);
  }

  /** Resolves when a thread has ended, after the unmount; rejects if one fails. */
  async firstEnded(): Promise<void> {
    await this.#allStarted;
    await Promise.race(this.#ends);
  }

  /** Resolves when all threads have ended, after the unmount; rejects if one fails. */
  async ended(): Promise<void> {
    await this.#allStarted;
    await Promise.all(this.#ends);
  }

  /** Let threads end that were never let go, and wait for all. Failures of theirs are told elsewhere. */
  async abandon(): Promise<void> {
    letEnd(this.#start);
    await Promise.allSettled(this.#ends);
  }

  #startOthers(count: number, served: Served): void {
    for (let thread = 1; thread < count; thread++) {
      const worker = startIoThread({ thread, start: this.#start });
      worker.postMessage(served);
      this.#add(worker);
    }
  }

  #add(worker: Worker): void {
    worker.on("message", (message: IoThreadMessage) => {
      if (message.kind === "maintain") this.#upkeep.maintain(message.device);
      else if (message.kind === "stream") this.#upkeep.stream(message.device);
    });
    const end = endOf(worker);
    end.catch(() => undefined);
    this.#ends.push(end);
  }
}

function firstServing(worker: Worker): Promise<void> {
  return new Promise((resolve, reject) => {
    // Nothing is said before that.
    worker.once("message", () => resolve());
    worker.once("error", reject);
    worker.once("exit", (code) => reject(new Error(`an I/O thread ended with status ${code}`)));
  });
}

function endOf(worker: Worker): Promise<void> {
  return new Promise((resolve, reject) => {
    worker.once("error", reject);
    worker.once("exit", (code) => {
      if (code === 0) resolve();
      else reject(new Error(`an I/O thread ended with status ${code}`));
    });
  });
}
