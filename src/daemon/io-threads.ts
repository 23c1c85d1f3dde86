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
  /** Resolves when the first thread serves requests; rejects if one fails. */
  readonly serving: Promise<void>;
  /** Resolves when all threads have ended, after the unmount; rejects if one fails. */
  readonly ended: Promise<void>;
  readonly #workers: readonly Worker[];
  readonly #start: Int32Array;

  constructor(count: number, tree: TreeDescription, ownership: Ownership) {
    const start = new SharedArrayBuffer((FIRST_FD + count) * Int32Array.BYTES_PER_ELEMENT);
    this.#start = new Int32Array(start);
    this.#workers = Array.from({ length: count }, (_, thread) => {
      const workerData: IoThreadData = { thread, start, tree, ownership };
      return new Worker(IO_THREAD, { workerData });
    });
    this.serving = Promise.any(this.#workers.map(firstMessage)).catch((error: unknown) => {
      throw error instanceof AggregateError ? error.errors[0] : error;
    });
    this.ended = Promise.all(this.#workers.map(end)).then(() => undefined);
    // Whoever waits for them handles failures; until then they are not unhandled.
    this.serving.catch(() => undefined);
    this.ended.catch(() => undefined);
  }

  /** Let the threads serve the session of `fd`. */
  serve(fd: number, session: Session): void {
    Atomics.store(this.#start, DATA_MAX, session.dataMax);
    this.#workers.forEach((_, thread) => {
      Atomics.store(this.#start, FIRST_FD + thread, thread === 0 ? fd : cloneQueue(fd));
    });
    Atomics.store(this.#start, GO, 1);
    Atomics.notify(this.#start, GO);
  }

  /** End threads that were never let go. */
  async abandon(): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
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

function end(worker: Worker): Promise<void> {
  return new Promise((resolve, reject) => {
    worker.once("error", reject);
    worker.once("exit", (code) => {
      if (code === 0) resolve();
      else reject(new Error(`an I/O thread ended with status ${code}`));
    });
  });
}
