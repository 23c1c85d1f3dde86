/**
 * Ends the test worker when the engine hangs: engine calls are synchronous, so a time limit of the test
 * runner would never fire. A thread watches a counter that every case advances.
 */

import { Worker } from "node:worker_threads";

/** Only finds hangs: a case needs milliseconds. */
const HANG_MS = 90_000;

const WATCH = `
const { workerData } = require("node:worker_threads");
const { writeSync } = require("node:fs");
const words = new Int32Array(workerData.shared, 0, 2);
const label = new Uint8Array(workerData.shared, 8);
for (;;) {
  const before = Atomics.load(words, 0);
  const outcome = Atomics.wait(words, 0, before, workerData.hangMs);
  if (outcome === "timed-out" && Atomics.load(words, 1) === 1) {
    const name = Buffer.from(label).toString().split("\\0", 1)[0];
    writeSync(2, "hang in the engine: " + name + "\\n");
    process.kill(process.pid, "SIGKILL");
  }
}
`;

const LABEL_BYTES = 1024;

/** Watches calls of one test file. */
export class Watchdog {
  readonly #words: Int32Array;
  readonly #label: Buffer;
  readonly #worker: Worker;

  constructor() {
    const shared = new SharedArrayBuffer(8 + LABEL_BYTES);
    this.#words = new Int32Array(shared, 0, 2);
    this.#label = Buffer.from(shared, 8);
    this.#worker = new Worker(WATCH, { eval: true, workerData: { shared, hangMs: HANG_MS } });
    this.#worker.unref();
  }

  /** Calls `body`; if it has not returned in time, names `label` and kills the worker process. */
  watch<T>(label: string, body: () => T): T {
    this.#label.fill(0);
    this.#label.write(label, 0, LABEL_BYTES - 1);
    this.#advance(1);
    try {
      return body();
    } finally {
      this.#advance(0);
    }
  }

  async close(): Promise<void> {
    await this.#worker.terminate();
  }

  #advance(active: 0 | 1): void {
    Atomics.store(this.#words, 1, active);
    Atomics.add(this.#words, 0, 1);
    Atomics.notify(this.#words, 0);
  }
}
