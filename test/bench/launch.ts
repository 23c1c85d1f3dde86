/** What starting any of the FUSE servers has in common. */

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { CleanupStack } from "./cleanup-stack.ts";
import { findMount } from "./mount-table.ts";
import { run } from "./run-command.ts";
import type { ServedImage } from "./served-image.ts";

/** What a launcher gets. */
export interface LaunchRequest {
  readonly image: ServedImage;
  readonly access: "read-only" | "read-write";
  /** What is read from a backing file is stored in the image; tsimgfs does so unless told otherwise. */
  readonly copyOnRead?: boolean | undefined;
  /** An empty directory for mount point, pid file and log. Its path is unique to this start. */
  readonly directory: string;
  readonly threads: number | undefined;
  /** The program built from rawfuse.c. */
  readonly rawfuse: string | undefined;
  readonly signal: AbortSignal;
  /** What undoes the launch. Steps are added as soon as there is something to undo. */
  readonly cleanup: CleanupStack;
}

export interface Launched {
  /** Regular file with the image's content. */
  readonly device: string;
  readonly mountPoint: string;
  readonly pid: number;
  /** From just before the start of the program until the device was usable. */
  readonly readyMs: number;
}

/** The mount point of a launch that mounts a directory. */
export async function makeMountDirectory(directory: string): Promise<string> {
  const mountPoint = join(directory, "mnt");
  await mkdir(mountPoint);
  return mountPoint;
}

/** Take away whatever is still mounted there. */
export async function unmountLazily(mountPoint: string): Promise<void> {
  if ((await findMount(mountPoint)) !== undefined)
    await run(["fusermount3", "-u", "-z", mountPoint]);
}
