/** The cells that use the device as a disk: a file system is made on it, and files are copied to it. */

import { performance } from "node:perf_hooks";
import { MIB, type Target } from "./cell.ts";
import { withExt4, withLoop } from "./loop-device.ts";
import { run } from "./run-command.ts";
import { type Part, splitDevice } from "./warm-up.ts";

const MKFS = ["mkfs.ext4", "-q", "-F"] as const;

/** File systems per second. mkfs discards the whole device first, and syncs at its end. */
export async function makeFileSystemOnLoop({ server, signal }: Target): Promise<number> {
  const makeOn = (part: Part): Promise<number> =>
    withLoop(server.device, part, signal, async (loop) => {
      const { elapsedMs } = await run([...MKFS, loop], { signal });
      await checkFileSystem(loop, signal);
      return 1000 / elapsedMs;
    });
  const { warmUp, rest } = splitDevice(server.virtualSize);
  await makeOn(warmUp);
  return makeOn(rest);
}

/** MiB/s of files' content. Making the file system warms the server up. */
export function copyTreeToLoop(target: Target): Promise<number> {
  const { server, tree, copyDirectory, signal } = target;
  if (tree === undefined) throw new Error("there is no tree to copy");
  const whole = { offset: 0, size: server.virtualSize };
  return withLoop(server.device, whole, signal, async (loop) => {
    await run([...MKFS, loop], { signal });
    const elapsedMs = await withExt4(loop, copyDirectory, signal, async (mountPoint) => {
      const started = performance.now();
      await run(["cp", "-a", tree.path, mountPoint], { signal });
      await run(["sync", "--file-system", mountPoint], { signal });
      return performance.now() - started;
    });
    await checkFileSystem(loop, signal);
    return tree.size / MIB / (elapsedMs / 1000);
  });
}

async function checkFileSystem(loop: string, signal: AbortSignal): Promise<void> {
  await run(["fsck.ext4", "-f", "-n", loop], { signal });
}
