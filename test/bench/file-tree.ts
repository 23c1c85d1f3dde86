/** A directory tree to be copied: half of its bytes are small files, half are large ones. */

import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { FileTree } from "./cell.ts";
import { SeededBytes } from "./seeded-bytes.ts";

const FILES_PER_DIRECTORY = 100;
const SMALL_FILE_MAX = 32 * 1024;
const LARGE_FILE_SIZE = 8 * 1024 * 1024;

/** The same files in every run, of about `wanted` bytes together. */
export async function makeFileTree(
  path: string,
  wanted: number,
  signal: AbortSignal,
): Promise<FileTree> {
  const source = new SeededBytes();
  let size = 0;
  let count = 0;
  const add = async (length: number): Promise<void> => {
    signal.throwIfAborted();
    const directory = join(path, String(Math.floor(count / FILES_PER_DIRECTORY)));
    if (count % FILES_PER_DIRECTORY === 0) await mkdir(directory, { recursive: true });
    await writeFile(join(directory, String(count)), source.next(length));
    size += length;
    count += 1;
  };
  while (size < wanted / 2) await add(1 + (source.next(4).readUInt32LE() % SMALL_FILE_MAX));
  while (size < wanted) await add(Math.min(LARGE_FILE_SIZE, wanted - size));
  return { path, size };
}
