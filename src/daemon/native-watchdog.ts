/**
 * The watchdog of a mount through fuse-native, a thread. The main thread serves all requests and hears all
 * signals: while it waits for a medium that does not answer, nobody else could end the daemon, and what it has
 * mounted and locked would stay so for ever. What was acknowledged and not yet durable is left to the host then:
 * only the main thread could flush it.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { workerData } from "node:worker_threads";
import { unmountWhileServing } from "../fuse/fusermount.ts";
import { findMount, readMountTable } from "../fuse/mount-table.ts";
import { HeartbeatWatch } from "../threads/heartbeat.ts";
import { writeLine } from "../trace.ts";
import type { NativeWatchdogData } from "./native-watchdog-start.ts";
import { isStopSignalPending } from "./stop-signals.ts";

const LOOK_EVERY_MS = 1000;
/** A main thread that was silent for less hears signals itself, and notices that it is unmounted. */
const NOTICED_MS = 3000;
/** fusermount3 may hang with the mount. */
const UNMOUNT_MAX_MS = 5000;

const data: NativeWatchdogData = workerData;

/** Whether the mount is to end, and the main thread does not know: somebody has unmounted it, or has sent a signal. */
function isToEnd(): boolean {
  return !readMountTable().some(({ device }) => device === data.device) || isStopSignalPending();
}

/** Returns when the main thread is stuck, true, or when there is nothing to watch any more, false. */
function watch(): boolean {
  const heartbeat = new HeartbeatWatch(data.heartbeat);
  const end = new Int32Array(data.end);
  let endingSince: number | undefined;
  while (Atomics.wait(end, 0, 0, LOOK_EVERY_MS) === "timed-out") {
    const now = performance.now();
    if (heartbeat.silence(now) < NOTICED_MS) endingSince = undefined;
    else if (isToEnd()) endingSince ??= now;
    // A signal that another thread has taken in the meantime was heard all the same.
    if (endingSince !== undefined && now - endingSince >= data.stuckMs) return true;
  }
  return false;
}

async function endMount(): Promise<void> {
  const { mountpoint, device, stuckMs } = data;
  writeLine(
    `tsimgfs: ${mountpoint}: the image has not answered for ${stuckMs / 1000} s; ended without it`,
  );
  if (findMount(mountpoint)?.device === device) {
    const unmounted = unmountWhileServing(mountpoint, { lazy: true }).catch((error: unknown) =>
      writeLine(`tsimgfs: ${error instanceof Error ? error.message : String(error)}`),
    );
    await Promise.race([unmounted, sleep(UNMOUNT_MAX_MS)]);
  }
  // A thread that waits for the medium cannot be ended in another way.
  process.kill(process.pid, "SIGKILL");
}

if (watch()) void endMount();
