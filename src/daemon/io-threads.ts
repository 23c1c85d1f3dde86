/**
 * The I/O threads as the main thread sees them. They are started while the mount is being made, and
 * wait for its descriptors in one block of shared memory:
 *
 *     word 0       0: wait, 1: serve
 *     word 1       bytes of the largest READ or WRITE
 *     word 2 + n   the descriptor of thread n
 */

import { Worker } from "node:worker_threads";
import type { Ownership } from "../fuse/attributes.ts";
import { cloneQueue, type Session } from "../fuse/session.ts";
import type { TreeDescription } from "../tree/description.ts";

/** Beside this file in src, and where the build puts it: from any folder beside daemon/. */
const IO_THREAD = new URL("../daemon/io-thread.js", import.meta.url);

const GO = 0;
const DATA_MAX = 1;
const FIRST_FD = 2;

/** What each thread gets. */
export interface IoThreadData {
  readonly thread: number;
  readonly start: SharedArrayBuffer;
  readonly tree: TreeDescription;
  readonly ownership: Ownership;
}

/** What a thread tells the main thread before it starts to serve. */
export type IoThreadMessage = "serving";

export class IoThreads {
  readonly #count: number;
  readonly #data: Omit<IoThreadData, "thread">;
  readonly #words: Int32Array;
  readonly #workers: Worker[] = [];
  readonly #ends: Promise<void>[] = [];

  /** Starts the first thread; the others follow when it serves, so that the mount is ready sooner. */
  constructor(count: number, tree: TreeDescription, ownership: Ownership) {
    const start = new SharedArrayBuffer((FIRST_FD + count) * Int32Array.BYTES_PER_ELEMENT);
    this.#count = count;
    this.#data = { start, tree, ownership };
    this.#words = new Int32Array(start);
    this.#startThread(0);
  }

  /**
   * Let the threads serve the session of `fd`. Returns when the first one does.
   *
   * @throws the reason why it could not start
   */
  async serve(fd: number, session: Session): Promise<void> {
    const words = this.#words;
    Atomics.store(words, DATA_MAX, session.dataMax);
    for (let thread = 0; thread < this.#count; thread++) {
      Atomics.store(words, FIRST_FD + thread, thread === 0 ? fd : cloneQueue(fd));
    }
    Atomics.store(words, GO, 1);
    Atomics.notify(words, GO);
    const [first] = this.#workers;
    if (first !== undefined) await firstMessage(first);
    for (let thread = 1; thread < this.#count; thread++) this.#startThread(thread);
  }

  /** Resolves when all threads have ended, after the unmount; rejects if one fails. */
  async ended(): Promise<void> {
    await Promise.all(this.#ends);
  }

  /** End threads that were never let go. */
  async abandon(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }

  #startThread(thread: number): void {
    const workerData: IoThreadData = { ...this.#data, thread };
    // Descriptors are shared: a thread closes what another one opened.
    const worker = new Worker(IO_THREAD, { workerData, trackUnmanagedFds: false });
    const end = endOf(worker);
    // Whoever waits for the end handles a failure; until then it is not unhandled.
    end.catch(() => undefined);
    this.#workers.push(worker);
    this.#ends.push(end);
  }
}

/** In an I/O thread: wait for `serve`; returns the descriptor and the size of requests. */
export function waitForStart({ start, thread }: IoThreadData): { fd: number; dataMax: number } {
  const words = new Int32Array(start);
  Atomics.wait(words, GO, 0);
  return {
    fd: Atomics.load(words, FIRST_FD + thread),
    dataMax: Atomics.load(words, DATA_MAX),
  };
}

function firstMessage(worker: Worker): Promise<void> {
  return new Promise((resolve, reject) => {
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
