/** What a mount consists of, as plain data: each I/O thread makes its own tree from it. */

import type { SharedLayer } from "../block/open-chain.ts";
import type { SharedWriting } from "../block/writing-parts.ts";
import type { RequestProgress } from "../threads/request-progress.ts";
import { RENDERED_FILE_WORDS } from "./rendered-file.ts";

/** One image of a mount: plain data for all threads. */
export interface DeviceDescription {
  /** The tree shows NAME.raw. */
  readonly name: string;
  /** The image, an absolute path. */
  readonly imagePath: string;
  readonly layers: readonly SharedLayer[];
  /** undefined: the device is read-only. */
  readonly writing: SharedWriting | undefined;
  /** The number of the snapshot that the device shows; undefined: it is the disk as it is now. */
  readonly snapshot?: number | undefined;
  /** Bytes that the image's file occupies, at the time of the mount. */
  readonly allocatedSize: number;
  /** Seconds since the epoch, at the time of the mount. */
  readonly modifiedAt: number;
}

/** What one thread brings along to serve a mount. */
export interface TreeThread {
  /** A number that no other thread uses: of its counters and locks. */
  readonly thread: number;
  /** Of this thread; undefined: nobody looks at it. */
  readonly progress?: RequestProgress | undefined;
  /** Asks for the upkeep of a device. */
  readonly requestMaintenance: ((device: number) => void) | undefined;
  /** Lets the upkeep look at the state of a device's streaming. */
  readonly wakeStream: ((device: number) => void) | undefined;
}

/** A whole mount: plain data for all threads. */
export interface TreeDescription {
  readonly devices: readonly DeviceDescription[];
  /** The mount point is a regular file: the root is the only device. */
  readonly rootIsDevice: boolean;
  readonly counters: SharedArrayBuffer;
  readonly renderedFiles: SharedArrayBuffer;
  readonly truncatedFiles: SharedArrayBuffer;
  /** Of `createPartitionWindows`. */
  readonly partitionWindows: SharedArrayBuffer;
  /** Of `createDeviceOpens`. */
  readonly deviceOpens: SharedArrayBuffer;
  /** Of `createStreamStates`. */
  readonly streams: SharedArrayBuffer;
  /** Of `createInterruptions`. */
  readonly interruptions: SharedArrayBuffer;
  readonly daemonPid: number;
}

/** Memory that the statistics of all devices, and the metrics, share between threads. */
export function createRenderedFileMemory(devices: number): SharedArrayBuffer {
  return new SharedArrayBuffer((devices + 1) * RENDERED_FILE_WORDS * Int32Array.BYTES_PER_ELEMENT);
}

/** The part of it for one device, or for the metrics: those come after the last device. */
export function renderedFileWords(memory: SharedArrayBuffer, index: number): Int32Array {
  const start = index * RENDERED_FILE_WORDS * Int32Array.BYTES_PER_ELEMENT;
  return new Int32Array(memory, start, RENDERED_FILE_WORDS);
}
