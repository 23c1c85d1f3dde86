/** Starting a thread that helps to copy a disk, and what it says at the end. */

import { Worker } from "node:worker_threads";
import type { SharedCopy } from "../block/convert/disk-copier.ts";
import { type Errno, TsimgfsError } from "../errors.ts";

/** Beside this file in src, and where the build puts it. */
const COPY_THREAD = new URL("../cli/copy-thread.js", import.meta.url);

/** What a thread is to do. */
export interface CopyThreadData {
  readonly shared: SharedCopy;
  /** Its place in the target's locks. */
  readonly slot: number;
  readonly quiet: boolean;
}

/** An error of ours as another thread can receive it. */
export interface CopyFailure {
  readonly code: Errno;
  readonly path: string;
  readonly reason: string;
}

/** What a thread says when it has come to the end: nothing, or what went wrong. */
export type CopyEnd = CopyFailure | undefined;

/** A thread that loads what it needs, and then waits for what it is to copy. */
class CopyThread {
  readonly #worker: Worker;
  readonly #ended: Promise<CopyEnd>;

  constructor() {
    // Descriptors are shared: the main thread opened them and closes them.
    this.#worker = new Worker(COPY_THREAD, { trackUnmanagedFds: false });
    // As long as it has nothing to do, the process may end without it.
    this.#worker.unref();
    this.#ended = new Promise((resolve, reject) => {
      this.#worker.once("message", resolve);
      this.#worker.once("error", reject);
      this.#worker.once("exit", (code) => reject(new Error(`a thread ended with status ${code}`)));
    });
    // Whoever lets it run hears of it.
    this.#ended.catch(() => undefined);
  }

  async run(data: CopyThreadData): Promise<void> {
    this.#worker.ref();
    this.#worker.postMessage(data);
    const failure = await this.#ended;
    if (failure === undefined) return;
    throw new TsimgfsError(failure.code, failure.path, failure.reason);
  }
}

let prepared: CopyThread | undefined;

/** Start a thread that is likely to be needed: it takes as long to load as it takes to open images. */
export function prepareCopyThread(): void {
  prepared ??= new CopyThread();
}

/**
 * Let a thread copy: the one that was prepared, or a new one.
 *
 * @returns when it has come to the end
 * @throws {TsimgfsError} it could not read or write
 */
export async function runCopyThread(data: CopyThreadData): Promise<void> {
  const thread = prepared ?? new CopyThread();
  prepared = undefined;
  await thread.run(data);
}
