// Loop devices and the file systems on them for the length of a test: always unmounted and detached.

import { rm } from "node:fs/promises";
import { mountAt } from "./mount-table.ts";
import { attempt, run, until } from "./run.ts";
import { makeScratch } from "./scratch.ts";

/** Calls `body` with a loop device on `file`, and detaches it afterwards. */
export async function withLoop<T>(
  file: string,
  losetupArgs: readonly string[],
  body: (device: string) => Promise<T>,
): Promise<T> {
  const { stdout } = await run("losetup", ["--find", "--show", ...losetupArgs, file]);
  const device = stdout.trim();
  try {
    return await body(device);
  } finally {
    await run("losetup", ["--detach", device]);
    await until(`${device} is detached`, async () => {
      // A device that is still in use detaches itself at the last close; the query then fails.
      return (await attempt("losetup", [device])).status !== 0;
    });
  }
}

/** Calls `body` with a directory where a block device is mounted, and unmounts it afterwards. */
export async function withFileSystem<T>(
  device: string,
  mountArgs: readonly string[],
  body: (directory: string) => Promise<T>,
): Promise<T> {
  const directory = await makeScratch("filesystem");
  try {
    await run("mount", [...mountArgs, device, directory]);
    return await body(directory);
  } finally {
    if (mountAt(directory) !== undefined) {
      const result = await attempt("umount", [directory]);
      if (result.status !== 0) {
        await run("umount", ["--lazy", directory]);
      }
    }
    await rm(directory, { recursive: true, force: true });
  }
}
