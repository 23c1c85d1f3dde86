/** Loop devices on a server's device, and file systems on them. */

import { mkdir, readdir, readFile, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { CleanupStack } from "./cleanup-stack.ts";
import { findMount } from "./mount-table.ts";
import { run } from "./run-command.ts";
import type { Part } from "./warm-up.ts";

const SYS_BLOCK = "/sys/block";
/** How long a loop device may take to let go of its file. */
const DETACH_TIMEOUT_MS = 5_000;

/**
 * Call `body` with a loop device on a part of `file`, through the page cache as losetup does by
 * default. Afterwards, also on failure, nothing is attached to the file.
 */
export async function withLoop<T>(
  file: string,
  { offset, size }: Part,
  signal: AbortSignal,
  body: (loop: string) => Promise<T>,
): Promise<T> {
  const cleanup = new CleanupStack();
  // By the file and not by the name that losetup tells: it may be interrupted after attaching.
  cleanup.defer(() => detachAll(file));
  try {
    const { stdout } = await run(
      ["losetup", "--find", "--show", `--offset=${offset}`, `--sizelimit=${size}`, file],
      { signal },
    );
    const loop = stdout.trim();
    await assertAttached(loop, file);
    const result = await body(loop);
    await assertAttached(loop, file);
    return result;
  } finally {
    await cleanup.unwind();
  }
}

/** Call `body` with the directory, made for this, where the loop device's ext4 is mounted. */
export async function withExt4<T>(
  loop: string,
  directory: string,
  signal: AbortSignal,
  body: (mountPoint: string) => Promise<T>,
): Promise<T> {
  const mountPoint = join(directory, "ext4");
  const cleanup = new CleanupStack();
  await mkdir(mountPoint);
  cleanup.defer(() => rmdir(mountPoint));
  cleanup.defer(() => unmount(mountPoint));
  try {
    // The kernel would go on making what mkfs left out, at a time of its own choice.
    await run(["mount", "-t", "ext4", "-o", "noinit_itable", loop, mountPoint], { signal });
    const result = await body(mountPoint);
    const mount = await findMount(mountPoint);
    if (mount?.type !== "ext4") throw new Error(`${mountPoint} is not an ext4 mount any more`);
    return result;
  } finally {
    await cleanup.unwind();
  }
}

/** Whether loop devices can be made here: root only. */
export async function hasLoop(signal: AbortSignal): Promise<boolean> {
  if (process.getuid?.() !== 0) return false;
  try {
    await run(["losetup", "--find"], { signal });
    return true;
  } catch {
    signal.throwIfAborted();
    return false;
  }
}

async function unmount(mountPoint: string): Promise<void> {
  if ((await findMount(mountPoint)) === undefined) return;
  try {
    await run(["umount", mountPoint]);
  } catch (error) {
    await run(["umount", "--lazy", mountPoint]);
    throw error;
  }
}

async function assertAttached(loop: string, file: string): Promise<void> {
  if (!(await loopsOn(file)).includes(loop)) throw new Error(`${loop} is not attached to ${file}`);
}

async function detachAll(file: string): Promise<void> {
  for (const loop of await loopsOn(file)) await run(["losetup", "--detach", loop]);
  for (let waitedMs = 0; (await loopsOn(file)).length > 0; waitedMs += 10) {
    if (waitedMs > DETACH_TIMEOUT_MS) throw new Error(`a loop device stays attached to ${file}`);
    await sleep(10);
  }
}

/** By what the kernel says, which works when nobody serves the file any more. */
async function loopsOn(file: string): Promise<string[]> {
  const names = (await readdir(SYS_BLOCK)).filter((name) => /^loop\d+$/.test(name));
  const found: string[] = [];
  for (const name of names) {
    if ((await backingFile(name)) === file) found.push(`/dev/${name}`);
  }
  return found;
}

/** Undefined for a loop device that is not attached: it has no such file in /sys. */
async function backingFile(name: string): Promise<string | undefined> {
  try {
    return (await readFile(join(SYS_BLOCK, name, "loop/backing_file"), "utf8")).replace(/\n$/, "");
  } catch {
    return undefined;
  }
}
