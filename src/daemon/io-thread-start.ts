/**
 * Starting an I/O thread and telling it when to begin. A thread takes longer to start than the mount
 * to be made, so the first one is started before anything else is loaded: this file imports nothing of
 * ours but types. It waits in one block of shared memory:
 *
 *     word 0       0: wait, 1: serve, 2: there is nothing to serve
 *     word 1       bytes of the largest READ or WRITE
 *     word 2 + n   the descriptor of thread n
 *
 * What it serves is in a message that was posted before word 0 was set.
 */

import { parentPort, receiveMessageOnPort, Worker } from "node:worker_threads";
import type { Ownership } from "../fuse/attributes.ts";
import type { TreeDescription } from "../tree/description.ts";

/** Beside this file in src, and where the build puts it: from any folder beside daemon/. */
const IO_THREAD = new URL("../daemon/io-thread.js", import.meta.url);

export const IO_THREADS_MAX = 64;

const GO = 0;
/** Values of the word GO. */
const WAIT = 0;
const SERVE = 1;
const END = 2;
const DATA_MAX = 1;
const FIRST_FD = 2;

/** What a thread gets when it is started. */
export interface IoThreadData {
  readonly thread: number;
  readonly start: SharedArrayBuffer;
}

/** What all threads of a mount serve. */
export interface Served {
  readonly tree: TreeDescription;
  readonly ownership: Ownership;
  /** Of `createThreadCrew`: which threads wait for requests. */
  readonly crew: SharedArrayBuffer;
  /** Of `createRequestProgress`. */
  readonly progress: SharedArrayBuffer;
}

/**
 * What a thread tells the main thread: that it starts to serve, that a device needs maintenance, and that
 * somebody has changed the state of its streaming.
 */
export type IoThreadMessage =
  | { readonly kind: "serving" }
  | { readonly kind: "maintain" | "stream"; readonly device: number };

/** Memory for the start of all threads of a mount. */
export function createStartMemory(): SharedArrayBuffer {
  return new SharedArrayBuffer((FIRST_FD + IO_THREADS_MAX) * Int32Array.BYTES_PER_ELEMENT);
}

/** Start a thread; it waits for `letGo`. */
export function startIoThread(data: IoThreadData): Worker {
  // Descriptors are shared: a thread closes what another one opened.
  return new Worker(IO_THREAD, { workerData: data, trackUnmanagedFds: false });
}

/** Let all threads serve. Each must have been sent what it serves. */
export function letGo(
  start: SharedArrayBuffer,
  { fds, dataMax }: { fds: readonly number[]; dataMax: number },
): void {
  const words = new Int32Array(start);
  Atomics.store(words, DATA_MAX, dataMax);
  fds.forEach((fd, thread) => {
    Atomics.store(words, FIRST_FD + thread, fd);
  });
  Atomics.store(words, GO, SERVE);
  Atomics.notify(words, GO);
}

/**
 * Let threads that were not let go end by themselves: to terminate one that has just been started can
 * abort the process.
 */
export function letEnd(start: SharedArrayBuffer): void {
  const words = new Int32Array(start);
  if (Atomics.compareExchange(words, GO, WAIT, END) === WAIT) Atomics.notify(words, GO);
}

/** In an I/O thread: wait for `letGo`. Returns undefined if there is nothing to serve. */
export function waitForStart({
  start,
  thread,
}: IoThreadData): (Served & { fd: number; dataMax: number }) | undefined {
  const words = new Int32Array(start);
  Atomics.wait(words, GO, WAIT);
  if (Atomics.load(words, GO) === END) return undefined;
  if (parentPort === null) throw new Error("not an I/O thread");
  const served: { message: Served } | undefined = receiveMessageOnPort(parentPort);
  if (served === undefined) throw new Error("nothing to serve was sent");
  return {
    ...served.message,
    fd: Atomics.load(words, FIRST_FD + thread),
    dataMax: Atomics.load(words, DATA_MAX),
  };
}
