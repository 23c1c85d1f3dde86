/** `tsimgfs umount`: end a mount, and wait until its daemon has closed everything. */

import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { canonicalPath, isStale } from "../../daemon/mountpoint.ts";
import { isAlive, readDaemonPid } from "../../daemon/mounts.ts";
import { TsimgfsError, UsageError } from "../../errors.ts";
import { unmountFuse } from "../../fuse/fusermount.ts";
import { findMount } from "../../fuse/mount-table.ts";

const POLL_MS = 5;

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
  if (findMount(path) === undefined) throw new UsageError(mountpoint, "is not a mount of tsimgfs");
  if (isStale(path)) {
    unmountFuse(path, { lazy: true });
    return;
  }
  const pid = readDaemonPid(path);
  try {
    unmountFuse(path, { lazy });
  } catch (error) {
    if (!(error instanceof TsimgfsError && error.code === "EBUSY")) throw error;
    throw new TsimgfsError(
      "EBUSY",
      mountpoint,
      "is in use; close what uses it (fuser -m tells), or unmount with --lazy",
      { cause: error },
    );
  }
  // After a lazy unmount the daemon serves what is open: nobody knows how long.
  if (lazy || pid === undefined) return;
  while (isAlive(pid)) await sleep(POLL_MS);
}
