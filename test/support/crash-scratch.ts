/** Scratch directories in memory, where thousands of images come and go quickly. */

import { accessSync, constants, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { scratchRoot } from "./scratch.ts";

const MEMORY = "/dev/shm";

/** A new directory, in memory if the host has such a place. The caller removes it. */
export function makeMemoryScratch(label: string): string {
  return mkdtempSync(join(memoryRoot(), `tsimgfs-${label}-`));
}

/** Calls `body` with a new directory as `makeMemoryScratch`, and removes it afterwards. */
export async function withMemoryScratch<T>(
  label: string,
  body: (directory: string) => Promise<T>,
): Promise<T> {
  const directory = makeMemoryScratch(label);
  try {
    return await body(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function memoryRoot(): string {
  try {
    accessSync(MEMORY, constants.W_OK);
    return MEMORY;
  } catch {
    return scratchRoot();
  }
}
