/** `tsimgfs umount`: end a mount, and wait until its daemon has closed everything. */

import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { canonicalPath, isStale } from "../../daemon/mountpoint.ts";
import { isAlive, readDaemonPid, readEnding } from "../../daemon/mounts.ts";
import { TsimgfsError, UsageError } from "../../errors.ts";
import { unmountFuse } from "../../fuse/fusermount.ts";
import { findMount, readMountTable } from "../../fuse/mount-table.ts";

const POLL_MS = 5;
/** A daemon that has not begun to close its images after this long is kept by something else. */
const DEADLINE_MS = 20_000;

export function defineUmount(command: Command): void {
  command
    .description("Unmount; returns when the daemon has closed the images and is gone.")
    .argument("<mountpoint>")
    .option("-l, --lazy", "take it out of sight at once; what is open is served until it is closed")
    .addHelpText("after", "\nExample:\n  tsimgfs umount /mnt/images")
    .action(umount);
}

async function umount(mountpoint: string, { lazy = false }: { lazy?: boolean }): Promise<void> {
  const path = canonicalPath(mountpoint);
  const mount = findMount(path);
  if (mount === undefined) throw new UsageError(mountpoint, "is not a mount of tsimgfs");
  // A daemon that does not answer is not asked.
  if (lazy || isStale(path)) {
    unmountFuse(path, { lazy: true });
    return;
  }
  const pid = readDaemonPid(path);
  try {
    unmountFuse(path, { lazy: false });
  } catch (error) {
    if (!(error instanceof TsimgfsError && error.code === "EBUSY")) throw error;
    throw new TsimgfsError(
      "EBUSY",
      mountpoint,
      "is in use; close what uses it (fuser -m tells), or unmount with --lazy",
      { cause: error },
    );
  }
  if (pid !== undefined) await waitForEnd(pid, mountpoint, mount.device);
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
    if (ending === undefined && performance.now() > deadline) {
      throw new TsimgfsError(
        "EBUSY",
        mountpoint,
        `unmounted here, but its daemon (pid ${pid}) goes on; perhaps another mount namespace still has it`,
      );
    }
    await sleep(POLL_MS);
  }
}
