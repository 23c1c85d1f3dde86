/** Starting the thread that watches over the only one that serves a mount through fuse-native, and ending it. */

import { Worker } from "node:worker_threads";
import { findMount } from "../fuse/mount-table.ts";
import { writeLine } from "../trace.ts";
import { STUCK_MS } from "./stuck-end.ts";

/** Beside this file in src, and where the build puts it. */
const WATCHDOG = new URL("../daemon/native-watchdog.js", import.meta.url);

/** What the thread gets when it is started. */
export interface NativeWatchdogData {
  readonly mountpoint: string;
  /** `major:minor` of what is mounted there. */
  readonly device: string;
  /** Of `createHeartbeat`: the main thread's. */
  readonly heartbeat: SharedArrayBuffer;
  /** One word: 0 as long as there is something to watch. */
  readonly end: SharedArrayBuffer;
  /** How long the main thread may be silent while it is to end. */
  readonly stuckMs: number;
}

export class NativeWatchdog {
  readonly #end = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);

  /** @param mountpoint where the mount has just been made: absolute, without symbolic links */
  constructor(mountpoint: string, heartbeat: SharedArrayBuffer) {
    const mount = findMount(mountpoint);
    // Gone again: the main thread is there to notice it.
    if (mount === undefined) return;
    const { device } = mount;
    const data: NativeWatchdogData = {
      ...{ mountpoint, device, heartbeat, end: this.#end },
      stuckMs: STUCK_MS,
    };
    const worker = new Worker(WATCHDOG, { workerData: data, trackUnmanagedFds: false });
    worker.on("error", (error) => writeLine(`tsimgfs: the watchdog failed: ${error.message}`));
    worker.unref();
  }

  /** The mount has ended orderly. */
  end(): void {
    const words = new Int32Array(this.#end);
    Atomics.store(words, 0, 1);
    Atomics.notify(words, 0);
  }
}
