/** What each cell has to reach, as a multiple of another server's result in the same run. */

import type { CellName } from "./cells.ts";
import type { ImageName } from "./image-names.ts";
import { readCellsOf } from "./read-cells.ts";
import type { ServerName } from "./servers.ts";

/** Read-ahead from which on buffered reads are not bound by the kernel's default of 128 KiB. */
const LARGE_READ_AHEAD_KB = 1024;

export const READY_AIM_MS = 150;
export const RESIDENT_AIM_MIB = 100;

/** Multiples of qemu-storage-daemon for plain qcow2, with or without data or a backing file. */
const QCOW2_AIMS: Readonly<Partial<Record<CellName, number>>> = {
  "qd1-pinned": 1.8,
  qd1: 1.3,
  jobs8: 2.4,
  qd16: 2.5,
  "read-1m": 3,
  dd: 1.8,
  cp: 1.1,
  "write-qd1-pinned": 1.7,
  "write-jobs8": 1.7,
  "write-1m": 1,
  "write-fsync": 1,
  punch: 1,
  "write-per-cluster": 2,
  "fill-1m": 1.2,
  mkfs: 1,
  "copy-tree": 1,
  "copy-1m": 1.5,
  "copy-4k": 1.5,
  "copy-4k-unpinned": 1.5,
  "copied-1m": 1.5,
  "copied-4k": 1.5,
  stream: 1,
  "convert-raw": 1,
  "convert-qcow2": 1,
};

const QCOW2_DD_AIM_LARGE_READ_AHEAD = 2.5;

/** Multiples of qemu-storage-daemon where every cluster has to be inflated. */
const ZLIB_AIMS: Readonly<Partial<Record<CellName, number>>> = {
  "qd1-pinned": 1.2,
  qd1: 1.2,
  jobs8: 1.4,
  dd: 1.4,
};

/** Share of the C server's result on a raw file that is read. */
const RAW_AIM = 0.8;
const RAW_AIM_CELLS: ReadonlySet<string> = new Set(readCellsOf("raw"));

/**
 * The multiple of `reference` that tsimgfs has to reach, undefined if that comparison has no aim.
 */
export function aimOf(
  image: ImageName,
  cell: CellName,
  reference: ServerName,
  readAheadKb: number | undefined,
): number | undefined {
  if (image === "raw") return reference === "c" && RAW_AIM_CELLS.has(cell) ? RAW_AIM : undefined;
  if (reference !== "qsd") return undefined;
  if (image === "zlib") return ZLIB_AIMS[cell];
  if (cell === "dd" && (readAheadKb ?? 0) >= LARGE_READ_AHEAD_KB)
    return QCOW2_DD_AIM_LARGE_READ_AHEAD;
  return QCOW2_AIMS[cell];
}
