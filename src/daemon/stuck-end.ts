/**
 * The end of a mount whose medium does not answer. Whoever has a device open is served to the last close, also
 * when the daemon was told to end; but a request that waits for a disk which is gone would keep the daemon,
 * and what it has mounted and locked, for ever.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { SILENT_MS, StuckRequests } from "../threads/request-progress.ts";
import { writeLine } from "../trace.ts";
import { FAILURE_SHOWN_MS, showEnding } from "./endings.ts";
import type { OwnMount } from "./own-mount.ts";

/** What gets no answer from the host for longer than this, while the daemon is to end, ends it. */
export const STUCK_MS = 30_000;
const LOOK_EVERY_MS = 1000;
/** How often to look, while nobody wants the end, whether the medium answers. */
const WATCH_EVERY_MS = 5000;
/** How long making durable what was written may take then, and unmounting. */
const LAST_TRY_MS = 5000;

export class StuckEnd {
  readonly #mount: OwnMount;
  readonly #requests: StuckRequests;
  readonly #flush: () => Promise<void>;
  #timer: NodeJS.Timeout;
  #isExpected = false;
  #isSilent = false;

  /**
   * @param progress of all threads
   * @param flush makes durable what was acknowledged, as far as that can be done
   */
  constructor(mount: OwnMount, progress: SharedArrayBuffer, flush: () => Promise<void>) {
    this.#mount = mount;
    this.#requests = new StuckRequests(progress);
    this.#flush = flush;
    this.#timer = setInterval(() => this.#watch(), WATCH_EVERY_MS);
  }

  /** The daemon is to end: from now on nothing may take too long. */
  expect(): void {
    if (this.#isExpected) return;
    this.#isExpected = true;
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#look(), LOOK_EVERY_MS);
  }

  /** It ends orderly. */
  forget(): void {
    clearInterval(this.#timer);
  }

  #watch(): void {
    const isSilent = this.#requests.longest(performance.now()) >= SILENT_MS;
    if (isSilent !== this.#isSilent) {
      this.#isSilent = isSilent;
      const what = isSilent ? "gives no answer" : "answers again";
      writeLine(`tsimgfs: ${this.#mount.path}: the medium of an image ${what}`);
    }
    // Somebody may have unmounted lazily: the kernel says so only when the last file is closed, and whoever waits for
    // the medium cannot even be killed before.
    if (isSilent && this.#mount.place === "gone") this.expect();
  }

  #look(): void {
    if (this.#requests.longest(performance.now()) < STUCK_MS) return;
    this.forget();
    void this.#end();
  }

  async #end(): Promise<void> {
    const waited = `the image has given no answer for ${STUCK_MS / 1000} s`;
    writeLine(`tsimgfs: ${this.#mount.path}: ${waited}; ended without it`);
    showEnding("failed", this.#mount.path);
    await Promise.race([this.#flush(), sleep(LAST_TRY_MS)]);
    await Promise.race([this.#unmount(), sleep(LAST_TRY_MS)]);
    await sleep(FAILURE_SHOWN_MS);
    // A thread that waits for the medium cannot be ended in another way.
    process.kill(process.pid, "SIGKILL");
  }

  async #unmount(): Promise<void> {
    try {
      await this.#mount.unmount({ lazy: true });
    } catch (error) {
      writeLine(`tsimgfs: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
}
