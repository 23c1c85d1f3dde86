/**
 * The upkeep of a mount's disks as the main thread sees it. A thread of its own does it, started when it is first
 * needed: the main thread never waits for a medium, so that it always hears of signals.
 */

import { Worker } from "node:worker_threads";
import type { UpkeepAnswers, UpkeepData, UpkeepMessage, UpkeepTask } from "./upkeep-tasks.ts";

/** Beside this file in src, and where the build puts it: from any folder beside daemon/. */
const UPKEEP_THREAD = new URL("../daemon/upkeep-thread.js", import.meta.url);

export class Upkeep {
  readonly #data: UpkeepData;
  readonly #onBackingClosed: (device: number) => void;
  readonly #waiting: ((answer: UpkeepAnswers[keyof UpkeepAnswers]) => void)[] = [];
  readonly #failure: Promise<never>;
  #fail: (error: unknown) => void = () => undefined;
  #worker: Worker | undefined;

  /** @param onBackingClosed told when the files below the image of a device were closed */
  constructor(data: UpkeepData, onBackingClosed: (device: number) => void) {
    this.#data = data;
    this.#onBackingClosed = onBackingClosed;
    this.#failure = new Promise((_, reject) => {
      this.#fail = reject;
    });
    this.#failure.catch(() => undefined);
  }

  /** A device needs maintenance. */
  maintain(device: number): void {
    this.#post({ kind: "maintain", device });
  }

  /** Somebody has changed the state of a device's streaming. */
  stream(device: number): void {
    this.#post({ kind: "stream", device });
  }

  /**
   * Start to stream all devices that can be. Returns what the user should know of the others, a line each.
   *
   * @param limit bytes a second, of each; undefined: none
   */
  startStreaming(limit: number | undefined): Promise<readonly string[]> {
    return this.#ask<"start-streaming">({ kind: "start-streaming", limit });
  }

  /** End all streaming between two steps. */
  stopStreaming(): void {
    if (this.#worker !== undefined) this.#post({ kind: "stop-streaming" });
  }

  /** Make durable what was written, as far as that can be done: other threads do not end. */
  async flush(): Promise<void> {
    if (this.#worker !== undefined) await this.#ask<"flush">({ kind: "flush" });
  }

  /**
   * Close all disks; no other thread uses them any more. Returns whether all of it is durable: what is
   * not has been told.
   */
  async close(): Promise<boolean> {
    // Whoever changes an image for the first time asks for maintenance.
    return this.#worker === undefined || (await this.#ask<"close">({ kind: "close" }));
  }

  /** Rejects if the thread fails. */
  failed(): Promise<never> {
    return this.#failure;
  }

  #ask<K extends keyof UpkeepAnswers>(task: UpkeepTask & { kind: K }): Promise<UpkeepAnswers[K]> {
    const answer = new Promise<UpkeepAnswers[K]>((resolve) => {
      // Answers come in the order of the questions.
      this.#waiting.push((given) => resolve(given as UpkeepAnswers[K]));
    });
    this.#post(task);
    return Promise.race([answer, this.#failure]);
  }

  #post(task: UpkeepTask): void {
    this.#worker ??= this.#start();
    this.#worker.postMessage(task);
  }

  #start(): Worker {
    // Descriptors are shared: what another thread opened is closed there.
    const worker = new Worker(UPKEEP_THREAD, { workerData: this.#data, trackUnmanagedFds: false });
    worker.on("message", (message: UpkeepMessage) => {
      if (message.kind === "answer") this.#waiting.shift()?.(message.answer);
      else this.#onBackingClosed(message.device);
    });
    worker.once("error", this.#fail);
    worker.once("exit", (code) => {
      if (code !== 0) this.#fail(new Error(`the upkeep thread ended with status ${code}`));
    });
    return worker;
  }
}
