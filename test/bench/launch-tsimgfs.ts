/**
 * Our own server, started as a user starts it: `tsimgfs mount`, which returns when the devices are
 * usable.
 */

import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { fileURLToPath } from "node:url";
import { type Launched, type LaunchRequest, makeMountDirectory, unmountLazily } from "./launch.ts";
import { endProcess, fuseServersMarked } from "./proc.ts";
import { run } from "./run-command.ts";

/** The built command; this file runs from build/bench. */
export const MAIN = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

export function launchTsimgfs(request: LaunchRequest): Promise<Launched> {
  const { threads } = request;
  return launch(request, threads === undefined ? [] : ["--threads", String(threads)]);
}

/** The same through the npm package fuse-native. */
export function launchFuseNative(request: LaunchRequest): Promise<Launched> {
  return launch(request, ["--transport", "fuse-native"]);
}

async function launch(
  request: LaunchRequest,
  transportOptions: readonly string[],
): Promise<Launched> {
  const { image, access, directory, signal, cleanup } = request;
  const mountPoint = await makeMountDirectory(directory);
  cleanup.defer(() => unmountLazily(mountPoint));

  // Found by this in its environment, or by the path in its title, which may lie over that.
  const env = { TSIMGFS_BENCH_MARK: directory };
  const mountOptions = [...(access === "read-only" ? ["-r"] : []), ...transportOptions];
  const started = performance.now();
  cleanup.defer(async () => {
    for (const pid of await fuseServersMarked(directory)) await endProcess(pid);
  });
  await run([process.execPath, MAIN, "mount", ...mountOptions, image.path, mountPoint], {
    signal,
    env,
    logFile: join(directory, "log"),
  });
  cleanup.defer(async () => {
    await run([process.execPath, MAIN, "umount", mountPoint]);
  });
  const device = (await readdir(mountPoint)).find((name) => name.endsWith(".raw"));
  if (device === undefined) throw new Error(`tsimgfs: no device in ${mountPoint}`);
  await stat(join(mountPoint, device));
  const readyMs = performance.now() - started;

  const [pid, ...others] = await fuseServersMarked(directory);
  if (pid === undefined || others.length > 0) {
    throw new Error(
      `tsimgfs: one daemon expected, found ${others.length + (pid === undefined ? 0 : 1)}`,
    );
  }
  return { device: join(mountPoint, device), mountPoint, pid, readyMs };
}
