// Before the tests that need the command and the kernel: is it built, may users open /dev/fuse?
// After them: nothing may be left mounted or attached, else the run fails.

import { chmodSync, existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mountsBelow } from "./mount-table.ts";
import { MAIN } from "./repository.ts";
import { run } from "./run.ts";
import { SCRATCH_ENVIRONMENT } from "./scratch.ts";

const FUSE_DEVICE = "/dev/fuse";

interface LoopEntry {
  readonly device: string;
  readonly file: string;
}

/** Loop devices on files below a directory. */
async function loopsBelow(directory: string): Promise<LoopEntry[]> {
  const { stdout } = await run("losetup", [
    "--list",
    "--raw",
    "--noheadings",
    "-O",
    "NAME,BACK-FILE",
  ]);
  return stdout
    .split("\n")
    .map((line) => {
      const [device = "", file = ""] = line.split(" ");
      return { device, file };
    })
    .filter(({ file }) => file.startsWith(`${directory}/`));
}

/** Removes what tests left behind below a directory; returns a line for each thing. */
async function removeLeftovers(directory: string): Promise<string[]> {
  const leftovers: string[] = [];
  for (const { device, file } of await loopsBelow(directory)) {
    leftovers.push(`loop device ${device} on ${file}`);
    await run("losetup", ["--detach", device]);
  }
  for (const entry of mountsBelow(directory)) {
    leftovers.push(`mount of type ${entry.type} at ${entry.mountPoint}`);
    await run("umount", ["--lazy", entry.mountPoint]);
  }
  return leftovers;
}

/** Called by vitest once per project; returns the teardown. */
export default function setup(): () => Promise<void> {
  if (!existsSync(MAIN)) {
    throw new Error(`${MAIN} does not exist: run "npm run build" before the tests`);
  }
  const isFirst = process.env[SCRATCH_ENVIRONMENT] === undefined;
  if (!isFirst) {
    return () => Promise.resolve();
  }
  const directory = mkdtempSync(join(tmpdir(), "tsimgfs-test-"));
  chmodSync(directory, 0o755);
  process.env[SCRATCH_ENVIRONMENT] = directory;
  const fuseMode = existsSync(FUSE_DEVICE) ? statSync(FUSE_DEVICE).mode & 0o777 : undefined;
  const opened = fuseMode !== undefined && fuseMode !== 0o666 && process.getuid?.() === 0;
  if (opened) {
    chmodSync(FUSE_DEVICE, 0o666);
  }
  return async () => {
    if (opened) {
      chmodSync(FUSE_DEVICE, fuseMode);
    }
    const leftovers = await removeLeftovers(directory);
    rmSync(directory, { recursive: true, force: true });
    if (leftovers.length > 0) {
      process.exitCode = 1; // vitest prints the error, but would still end with 0.
      throw new Error(`the tests left behind:\n${leftovers.join("\n")}`);
    }
  };
}
