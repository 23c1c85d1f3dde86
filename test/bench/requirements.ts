/** What the benchmark needs of the machine: programs, a tmpfs, and directories of its own. */

import { access, mkdtemp, realpath, statfs } from "node:fs/promises";
import { join, resolve } from "node:path";
import { type CleanupStack, errorText } from "./cleanup-stack.ts";
import { buildRawfuse } from "./launch-rawfuse.ts";
import { MAIN } from "./launch-tsimgfs.ts";
import type { Options } from "./options.ts";
import { removeTree } from "./remove-tree.ts";
import { hasProgram } from "./run-command.ts";

/** f_type of tmpfs. */
const TMPFS_MAGIC = 0x0102_1994;

const PROGRAMS = [
  "fio",
  "qemu-img",
  "fusermount3",
  "taskset",
  "fincore",
  "dd",
  "cp",
  "cmp",
  "find",
  "sync",
];

export async function requirePrograms({ servers }: Options): Promise<void> {
  const needed = servers.includes("qsd") ? [...PROGRAMS, "qemu-storage-daemon"] : PROGRAMS;
  for (const program of needed) {
    if (!(await hasProgram(program)))
      throw new Error(`${program} is not installed (mount-scripts/test.sh installs it)`);
  }
  if (!servers.includes("tsimgfs")) return;
  try {
    await access(MAIN);
  } catch {
    throw new Error(`${MAIN}: no such file, run npm run build first`);
  }
}

export async function makeDirectory(parent: string, cleanup: CleanupStack): Promise<string> {
  // Without symbolic links, as the mount table writes paths.
  const directory = await mkdtemp(join(await realpath(parent), "tsimgfs-bench-"));
  cleanup.defer(() => removeTree(directory));
  return directory;
}

export async function isTmpfs(path: string): Promise<boolean> {
  try {
    return (await statfs(path)).type === TMPFS_MAGIC;
  } catch {
    return false;
  }
}

/** The C server's program, or undefined with a note why there is none. */
export async function findRawfuse(
  { rawfuse, images, servers }: Options,
  directory: string,
  signal: AbortSignal,
  note: (text: string) => void,
): Promise<string | undefined> {
  if (!images.includes("raw") || !servers.includes("c")) return undefined;
  if (rawfuse === undefined) {
    note("no C server: TSIMGFS_BENCH_RAWFUSE names neither rawfuse.c nor the program");
    return undefined;
  }
  try {
    return await buildRawfuse(resolve(rawfuse), directory, signal);
  } catch (error) {
    signal.throwIfAborted();
    note(`no C server (gcc, pkg-config and libfuse3-dev are needed): ${errorText(error)}`);
    return undefined;
  }
}
