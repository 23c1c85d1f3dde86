/**
 * The end of a mount whose medium does not answer. Whoever has a device open is served to the last close, also
 * when the daemon was told to end; but a request that waits for a disk which is gone would keep the daemon,
 * and what it has mounted and locked, for ever.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { StuckRequests } from "../threads/request-progress.ts";
import { writeLine } from "../trace.ts";
import { FAILURE_SHOWN_MS, showEnding } from "./mounts.ts";

/** A request that takes longer than this, while the daemon is to end, ends it. */
export const STUCK_MS = 30_000;
const LOOK_EVERY_MS = 1000;
/** How long making durable what was written may take then. */
const FLUSH_MAX_MS = 5000;

export class StuckEnd {
  readonly #mountpoint: string;
  readonly #requests: StuckRequests;
  readonly #flush: () => void;
  #timer: NodeJS.Timeout | undefined;

  /**
   * @param progress of all threads
   * @param flush makes durable what was acknowledged, as far as that can be done
   */
  constructor(mountpoint: string, progress: SharedArrayBuffer, flush: () => void) {
    this.#mountpoint = mountpoint;
    this.#requests = new StuckRequests(progress);
    this.#flush = flush;
  }

  /** The daemon is to end: from now on no request may take too long. */
  expect(): void {
    this.#timer ??= setInterval(() => this.#look(), LOOK_EVERY_MS);
  }

  /** It ends orderly. */
  forget(): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    if (this.#requests.longest(performance.now()) < STUCK_MS) return;
    this.forget();
    void this.#end();
  }

  async #end(): Promise<void> {
    writeLine(
      `tsimgfs: ${this.#mountpoint}: a request has waited for the image for ${STUCK_MS / 1000} s; ended without it`,
    );
    showEnding("failed");
    // The medium may keep this thread, too.
    const kill = `setTimeout(() => process.kill(process.pid, "SIGKILL"), ${FLUSH_MAX_MS})`;
    new Worker(kill, { eval: true });
    this.#flush();
    await sleep(FAILURE_SHOWN_MS);
    // A thread that waits for the medium cannot be ended in another way.
    process.kill(process.pid, "SIGKILL");
  }
}
