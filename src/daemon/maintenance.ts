/**
 * What the upkeep thread does for disks that are written to: reservations are made before an I/O thread has
 * to wait for one, and what was freed is given back, also if nobody calls fsync. At the end it closes
 * the disks orderly.
 */

import { attachDisk } from "../block/attach-disk.ts";
import type { Disk } from "../block/disk.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { threadCounters } from "../threads/counters.ts";
import type { RequestProgress } from "../threads/request-progress.ts";
import { writeLine } from "../trace.ts";
import type { DeviceDescription } from "../tree/description.ts";

/** How long freed space waits for somebody's fsync, ms. */
const FREE_AFTER_MS = 5000;

export class Maintenance {
  readonly #devices: readonly DeviceDescription[];
  readonly #thread: number;
  readonly #counters: SharedArrayBuffer;
  readonly #progress: RequestProgress;
  readonly #disks = new Map<number, Disk>();
  readonly #timer: NodeJS.Timeout;

  /**
   * @param thread this thread's number among those that use the disks
   * @param counters of all threads
   */
  constructor(
    devices: readonly DeviceDescription[],
    {
      thread,
      counters,
      progress,
    }: { thread: number; counters: SharedArrayBuffer; progress: RequestProgress },
  ) {
    this.#devices = devices;
    this.#thread = thread;
    this.#counters = counters;
    this.#progress = progress;
    this.#timer = setInterval(() => this.#freeAll(), FREE_AFTER_MS);
  }

  /** An I/O thread asks for it. */
  maintain(device: number): void {
    attempt(() => this.diskOf(device)?.maintain());
  }

  /**
   * Close all disks; no other thread uses them any more. Returns whether all of it is durable: what is
   * not has been told.
   */
  close(): boolean {
    clearInterval(this.#timer);
    return this.#devices
      .map((_, device) => attempt(() => this.diskOf(device)?.close()))
      .every((isDone) => isDone);
  }

  /** Make durable what was written, as far as that can be done: other threads do not end. */
  flushAll(): void {
    for (const device of this.#devices.keys()) attempt(() => this.diskOf(device)?.flush());
  }

  #freeAll(): void {
    for (const disk of this.#disks.values()) {
      if (!disk.hasLateWork()) continue;
      this.#progress.during(() =>
        attempt(() => {
          disk.flush();
          disk.maintain();
        }),
      );
    }
  }

  /** This thread's disk of a device; undefined: it is read-only. */
  diskOf(device: number): Disk | undefined {
    const description = this.#devices[device];
    if (description?.writing === undefined) return undefined;
    const known = this.#disks.get(device);
    if (known !== undefined) return known;
    const resources = { clusterCache: new ClusterCache() };
    const devices = this.#devices.length;
    const counters = threadCounters(this.#counters, { thread: this.#thread, device, devices });
    const thread = {
      slot: this.#thread,
      requestMaintenance: undefined,
      counters,
      progress: this.#progress,
    };
    const disk = attachDisk(description, resources, thread);
    this.#disks.set(device, disk);
    return disk;
  }
}

/** A failure is told, and is no reason to end: an I/O thread that needs it tries it itself. */
function attempt(action: () => void): boolean {
  try {
    action();
    return true;
  } catch (error) {
    writeLine(`tsimgfs: ${error instanceof Error ? error.message : String(error)}`);
    return false;
  }
}
