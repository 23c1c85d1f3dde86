/** The page cache of one device, and of nothing else. */

import { stat } from "node:fs/promises";
import { MIB } from "./cell.ts";
import { run } from "./run-command.ts";

/**
 * Drop what the kernel has cached of the device: posix_fadvise(DONTNEED) by dd.
 * Throws if it stays, since the cell would then measure the page cache.
 */
export async function dropDeviceCache(device: string, signal: AbortSignal): Promise<void> {
  await run(["dd", `if=${device}`, "iflag=nocache", "count=0", "status=none"], { signal });
  // Of others' files, mincore(2) calls every page resident.
  if (process.getuid?.() !== 0 && process.getuid?.() !== (await stat(device)).uid) return;
  const { stdout } = await run(
    ["fincore", "--bytes", "--raw", "--noheadings", "-o", "RES", device],
    { signal },
  );
  if (Number(stdout) > MIB)
    throw new Error(`${device}: ${Number(stdout)} bytes stay in the page cache`);
}
