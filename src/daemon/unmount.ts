/** The end of a mount, as whoever wants it ended sees it. */

import { setTimeout as sleep } from "node:timers/promises";
import { TsimgfsError, UsageError } from "../errors.ts";
import { unmountFuse } from "../fuse/fusermount.ts";
import { findMount, type MountEntry, readMountTable } from "../fuse/mount-table.ts";
import { createTrace } from "../trace.ts";
import { readEnding } from "./endings.ts";
import { byMountUsers } from "./mount-users.ts";
import { canonicalPath, isStale } from "./mountpoint.ts";
import { isAlive, readDaemonPid } from "./mounts.ts";
import { statfsAnswers } from "./statfs-answers.ts";

const POLL_MS = 5;
/** What is in use for longer than this is not just looked at. */
const BUSY_MS = 1000;
const BUSY_POLL_MS = 50;
/** A daemon that has not begun to close its images after this long is kept by something else. */
const DEADLINE_MS = 20_000;

/**
 * Unmount, and wait until the daemon has closed the images and is gone.
 *
 * @param options.lazy take it out of sight at once, and do not wait
 * @throws {TsimgfsError} it is none of ours, or in use, or its daemon goes on or has failed
 */
export async function unmount(mountpoint: string, { lazy }: { lazy: boolean }): Promise<void> {
  const path = canonicalPath(mountpoint);
  const mount = findMount(path);
  if (mount === undefined) throw new UsageError(mountpoint, "is not a mount of tsimgfs");
  requireOwner(mount, mountpoint);
  // A daemon that does not answer is not asked.
  if (lazy) {
    unmountFuse(path, { lazy: true });
    return;
  }
  if (!(await statfsAnswers(path))) {
    unmountSilent(path, mountpoint);
    return;
  }
  if (isStale(path)) {
    unmountFuse(path, { lazy: true });
    return;
  }
  const pid = readDaemonPid(path);
  await unmountIdle(path, mountpoint);
  if (pid === undefined) return;
  await waitForEnd(pid, mountpoint, mount.device);
}

function requireOwner({ userId }: MountEntry, mountpoint: string): void {
  const user = process.geteuid?.() ?? 0;
  if (user === 0 || user === userId) return;
  const owner = userId === 0 ? "root" : `user ${userId}`;
  const others = userId === 0 ? "root" : "that user and root";
  const reason = `is a mount of ${owner}; only ${others} can unmount it`;
  throw new TsimgfsError("EPERM", mountpoint, reason);
}

/**
 * Unmount what does not answer: all threads of its daemon wait for a medium.
 *
 * @throws {TsimgfsError} it is in use; or nobody knows when its daemon ends
 */
function unmountSilent(path: string, mountpoint: string): void {
  const silent = "its daemon does not answer, perhaps because the medium of an image does not";
  let reason = `unmounted, but ${silent}; it may still have the images open`;
  try {
    unmountFuse(path, { lazy: false });
  } catch (error) {
    if (!(error instanceof TsimgfsError && error.code === "EBUSY")) throw error;
    reason = `${silent}, and it is in use${byMountUsers(path)}; umount --lazy ends it all the same`;
  }
  throw new TsimgfsError("EBUSY", mountpoint, reason);
}

/**
 * Unmount, unless it stays in use. Who only looks at it has it in use, too, for a moment: `tsimgfs list`
 * and commands that ask which images are mounted look at all mounts.
 */
async function unmountIdle(path: string, mountpoint: string): Promise<void> {
  const deadline = performance.now() + BUSY_MS;
  for (;;) {
    try {
      unmountFuse(path, { lazy: false });
      return;
    } catch (error) {
      // Somebody was faster, perhaps the daemon itself: its end is waited for all the same.
      if (findMount(path) === undefined) return;
      const isBusy = error instanceof TsimgfsError && error.code === "EBUSY";
      if (!isBusy || performance.now() > deadline) throw explainBusy(error, mountpoint);
    }
    await sleep(BUSY_POLL_MS);
  }
}

function explainBusy(cause: unknown, mountpoint: string): unknown {
  if (!(cause instanceof TsimgfsError && cause.code === "EBUSY")) return cause;
  const reason = `is in use${byMountUsers(canonicalPath(mountpoint))}; end that, or unmount with --lazy`;
  return new TsimgfsError("EBUSY", mountpoint, reason, { cause });
}

/** Wait for the daemon, unless its file system is mounted at another place too. */
async function waitForEnd(pid: number, mountpoint: string, device: string): Promise<void> {
  // The kernel gives the number of a device that is gone to the next one: who serves that one?
  const elsewhere = readMountTable().find(
    (entry) =>
      entry.device === device &&
      !isStale(entry.mountpoint) &&
      readDaemonPid(entry.mountpoint) === pid,
  );
  if (elsewhere !== undefined) {
    throw new TsimgfsError(
      "EBUSY",
      mountpoint,
      `unmounted here, but still mounted at ${elsewhere.mountpoint}, where its daemon (pid ${pid}) goes on`,
    );
  }
  await waitForDaemon(pid, mountpoint);
}

/**
 * Wait until a daemon has closed its images and is gone.
 *
 * @param mountpoint where it was mounted
 * @throws {TsimgfsError} EBUSY: it goes on; EIO: not all that was written could be made durable
 */
export async function waitForDaemon(pid: number, mountpoint: string): Promise<void> {
  createTrace("umount")("%s: waiting until process %d has closed the images", mountpoint, pid);
  const deadline = performance.now() + DEADLINE_MS;
  while (isAlive(pid)) {
    const ending = readEnding(pid);
    if (ending === "failed") {
      throw new TsimgfsError(
        "EIO",
        mountpoint,
        "unmounted, but not all that was written could be made durable; the log tells why (mount --log-file)",
      );
    }
    if (ending !== "closing" && performance.now() > deadline) {
      throw new TsimgfsError(
        "EBUSY",
        mountpoint,
        `unmounted here, but its daemon (pid ${pid}) goes on; perhaps another mount namespace still has it`,
      );
    }
    await sleep(POLL_MS);
  }
}
