/** Starting a thread that helps to copy a disk, and what it says when it ends. */

import { Worker } from "node:worker_threads";
import type { SharedCopy } from "../block/convert/disk-copier.ts";
import { type Errno, TsimgfsError } from "../errors.ts";

/** Beside this file in src, and where the build puts it. */
const COPY_THREAD = new URL("../cli/copy-thread.js", import.meta.url);

/** What a thread gets when it is started. */
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

/**
 * Start a thread.
 *
 * @returns when it has ended
 * @throws {TsimgfsError} it could not read or write
 */
export function runCopyThread(data: CopyThreadData): Promise<void> {
  // Descriptors are shared: the main thread opened them and closes them.
  const worker = new Worker(COPY_THREAD, { workerData: data, trackUnmanagedFds: false });
  return new Promise((resolve, reject) => {
    worker.on("message", ({ code, path, reason }: CopyFailure) => {
      reject(new TsimgfsError(code, path, reason));
    });
    worker.on("error", reject);
    worker.on("exit", () => resolve());
  });
}
