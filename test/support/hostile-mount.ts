/** Reads hostile images through a mount: sector by sector where reads fail, so that it compares with qemu-img. */

import { constants } from "node:fs";
import { type FileHandle, open, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { MEMORY_LIMIT_BYTES, peakMemoryBytes } from "./hostile-cli.ts";
import { type Outcome, type RangeContent, SECTOR_SIZE } from "./hostile-outcome.ts";
import { type DeviceRange, sampledRanges } from "./hostile-ranges.ts";
import type { Mount } from "./mounted.ts";

const READ_MAX = 256 * 1024;

function isInputOutputError(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "EIO";
}

/** What a device of a mount reads as, past the page cache: errors are exact to the sector then. */
export async function outcomeByMount(device: string): Promise<Outcome> {
  const { size } = await stat(device);
  const file = await open(device, constants.O_RDONLY | constants.O_DIRECT);
  try {
    const ranges: RangeContent[] = [];
    for (const range of sampledRanges(size)) {
      ranges.push(await readRange(file, range));
    }
    return { kind: "open", virtualSize: size, ranges };
  } finally {
    await file.close();
  }
}

async function readRange(file: FileHandle, { offset, length }: DeviceRange): Promise<RangeContent> {
  const bytes = Buffer.alloc(length);
  const failedSectors = new Map<number, string>();
  const readPart = async (start: number, end: number): Promise<void> => {
    try {
      const { bytesRead } = await file.read(bytes, start - offset, end - start, start);
      expect(bytesRead, `bytes read at ${start}`).toBe(end - start);
    } catch (error) {
      if (!isInputOutputError(error)) {
        throw error;
      }
      if (end - start <= SECTOR_SIZE) {
        failedSectors.set(start / SECTOR_SIZE, "EIO");
        return;
      }
      const middle = start + Math.ceil((end - start) / 2 / SECTOR_SIZE) * SECTOR_SIZE;
      await readPart(start, middle);
      await readPart(middle, end);
    }
  };
  for (let start = offset; start < offset + length; start += READ_MAX) {
    await readPart(start, Math.min(start + READ_MAX, offset + length));
  }
  // Which sectors are compressed is not known here: an error of QEMU there need not be one of ours.
  const compressedSectors = new Set(
    Array.from({ length: length / SECTOR_SIZE }, (_, index) => offset / SECTOR_SIZE + index),
  );
  return { offset, bytes, failedSectors, compressedSectors };
}

/** Reads a device through the page cache, as cp and dd do: whole, or up to `limit` bytes. Errors must be EIO. */
export async function readThroughCache(device: string, limit = 8 * 1024 * 1024): Promise<void> {
  const { size } = await stat(device);
  const file = await open(device, constants.O_RDONLY);
  const bytes = Buffer.alloc(64 * 1024);
  try {
    for (let offset = 0; offset < Math.min(size, limit); offset += bytes.length) {
      await file.read(bytes, 0, bytes.length, offset).catch((error: unknown) => {
        if (!isInputOutputError(error)) {
          throw error;
        }
      });
    }
  } finally {
    await file.close();
  }
}

/** Statistics parse, and every snapshot of the image can be listed, opened and read or fails with EIO. */
export async function checkSideFiles(mount: Mount, image: string): Promise<string[]> {
  const stats: unknown = JSON.parse(await readFile(mount.stats(image), "utf8"));
  expect(stats, `${image}: stats.json`).toBeTypeOf("object");
  const directory = mount.device(image).replace(/\.raw$/, ".snapshots");
  const names = await readdir(directory).catch(() => []);
  for (const name of names.slice(0, 20)) {
    await readThroughCache(join(directory, name), 64 * 1024).catch((error: unknown) => {
      if (!isInputOutputError(error)) {
        throw error;
      }
    });
  }
  return names;
}

/** The daemon runs, and never used more memory than it may. */
export function expectHealthyDaemon(mount: Mount): void {
  expect(peakMemoryBytes(mount.daemonPid()), "peak resident memory of the daemon").toBeLessThan(
    MEMORY_LIMIT_BYTES,
  );
}
