/** What a mount consists of, as plain data: each I/O thread makes its own tree from it. */

import type { SharedLayer } from "../block/open-chain.ts";
import { STATS_FILE_WORDS } from "./stats-file.ts";

/** One image of a mount: plain data for all threads. */
export interface DeviceDescription {
  /** The tree shows NAME.raw. */
  readonly name: string;
  /** The image, an absolute path. */
  readonly imagePath: string;
  readonly layers: readonly SharedLayer[];
  /** Bytes that the image's file occupies. */
  readonly allocatedSize: number;
  /** Seconds since the epoch. */
  readonly modifiedAt: number;
}

/** A whole mount: plain data for all threads. */
export interface TreeDescription {
  readonly devices: readonly DeviceDescription[];
  /** The mount point is a regular file: the root is the only device. */
  readonly rootIsDevice: boolean;
  readonly counters: SharedArrayBuffer;
  readonly statsFiles: SharedArrayBuffer;
  readonly daemonPid: number;
}

/** Memory that the stats files of a mount share between threads. */
export function createStatsFileMemory(devices: number): SharedArrayBuffer {
  return new SharedArrayBuffer(devices * STATS_FILE_WORDS * Int32Array.BYTES_PER_ELEMENT);
}
