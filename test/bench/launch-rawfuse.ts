/** The C server on libfuse for raw files: the practical limit of a FUSE server in user space. */

import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { type Launched, type LaunchRequest, makeMountDirectory, unmountLazily } from "./launch.ts";
import { findMount } from "./mount-table.ts";
import { endProcess, isAlive } from "./proc.ts";
import { run } from "./run-command.ts";

/** It stays in the foreground and says nothing when it is ready, so its mount is looked for. */
const READY_TIMEOUT_MS = 5_000;

/**
 * The program to start: `path` itself, or what gcc makes of it, in `directory`, if it is C source.
 */
export async function buildRawfuse(
  path: string,
  directory: string,
  signal: AbortSignal,
): Promise<string> {
  await stat(path);
  if (!path.endsWith(".c")) return path;
  const program = join(directory, "rawfuse");
  const { stdout } = await run(["pkg-config", "--cflags", "--libs", "fuse3"], { signal });
  await run(["gcc", "-O2", "-o", program, path, ...stdout.trim().split(/\s+/)], { signal });
  return program;
}

export async function launchRawfuse(request: LaunchRequest): Promise<Launched> {
  const { image, directory, rawfuse, signal, cleanup } = request;
  if (rawfuse === undefined) throw new Error("no C server was given");
  const mountPoint = await makeMountDirectory(directory);
  const device = join(mountPoint, "disk");
  cleanup.defer(() => unmountLazily(mountPoint));

  const logFile = join(directory, "log");
  const log = openSync(logFile, "w");
  const started = performance.now();
  const child = spawn(rawfuse, ["rw", image.path, mountPoint], {
    stdio: ["ignore", log, log],
    detached: true,
  });
  closeSync(log);
  const failed = new Promise<never>((_, reject) => child.on("error", reject));
  failed.catch(() => undefined);
  const { pid } = child;
  if (pid === undefined) return failed;
  cleanup.defer(() => endProcess(pid));

  while ((await findMount(mountPoint)) === undefined) {
    signal.throwIfAborted();
    if (!(await isAlive(pid)) || performance.now() - started > READY_TIMEOUT_MS) {
      throw new Error(`${rawfuse} did not mount: ${(await readFile(logFile, "utf8")).trim()}`);
    }
    await sleep(1);
  }
  await stat(device);
  return { device, mountPoint, pid, readyMs: performance.now() - started };
}
