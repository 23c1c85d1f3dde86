/**
 * A medium that answers each read late, all of them at once if need be: the file system that the tests of slow
 * media have (test/support/slow-files-process.ts), in a process of its own. It has neither a disk's one head nor
 * its noise, so what differs between servers is how many reads they have under way.
 */

import { spawn } from "node:child_process";
import { symlink } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import type { CleanupStack } from "./cleanup-stack.ts";
import { makeMountDirectory } from "./launch.ts";

/** This file runs from build/bench. */
const REPOSITORY = fileURLToPath(new URL("../..", import.meta.url));

/**
 * Show the files of a directory at a mount point below `scratch`, each read of which takes so long.
 *
 * @returns the mount point
 */
export async function mountSlowly(
  directory: string,
  delayMs: number,
  { scratch, cleanup }: { scratch: string; cleanup: CleanupStack },
): Promise<string> {
  const program = join(scratch, "slow-files.mjs");
  // Packages are found beside it.
  await symlink(join(REPOSITORY, "node_modules"), join(scratch, "node_modules"));
  await build({
    entryPoints: [join(REPOSITORY, "test/support/slow-files-process.ts")],
    outfile: program,
    bundle: true,
    platform: "node",
    format: "esm",
    packages: "external",
    logLevel: "warning",
  });
  const mountPoint = await makeMountDirectory(scratch);
  const child = spawn(process.execPath, [program, directory, mountPoint], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const ended = new Promise<void>((resolve) => {
    child.once("close", () => resolve());
  });
  // It unmounts when its input ends.
  cleanup.defer(async () => {
    child.stdin.end();
    await ended;
  });
  const firstLine = new Promise<string>((resolve) => {
    createInterface({ input: child.stdout }).once("line", resolve);
  });
  const told = await Promise.race([firstLine, ended]);
  if (told !== "ready") throw new Error("the slow medium cannot be mounted");
  child.stdin.write(`${JSON.stringify({ kind: "delay", ms: delayMs, calls: "reads" })}\n`);
  return mountPoint;
}
