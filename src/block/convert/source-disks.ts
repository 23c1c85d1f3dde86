/** What is copied from: disks one behind the other, or a part of that, as one thread reads it. */

import { EXTENT, Extent, type ThreadResources } from "../../formats/driver.ts";
import type { Storage } from "../../storage/storage.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { attachDisk } from "../attach-disk.ts";
import { BlockStatus } from "../block-status.ts";
import type { Disk } from "../disk.ts";
import type { SharedLayer } from "../open-chain.ts";

/** One disk to copy from: plain data for other threads. */
export interface SharedSource {
  /** The files of an open chain. */
  readonly layers: readonly SharedLayer[];
  /** Index in the snapshot table; undefined: the disk as it is now. */
  readonly snapshot: number | undefined;
}

/** What a run of the source is for who copies it. */
export const SOURCE = {
  /** Bytes that must be read. */
  data: 0,
  /** Reads as zeros. */
  zero: 1,
  /** The top image has nothing there: its backing file shows. Only where that is asked for. */
  backing: 2,
} as const;
export type SourceKind = (typeof SOURCE)[keyof typeof SOURCE];

/** A run of the source. Made once and overwritten. */
export class SourceRun {
  kind: SourceKind = SOURCE.data;
  /** Bytes, > 0. */
  length = 0;
}

/** Bytes of a disk as they are in a file of the host. Made once and overwritten. */
export class HostBytes {
  storage: Storage | undefined;
  offset = 0;
  /** Bytes; 0: they are not there as such. */
  length = 0;
}

/** A disk among those that are read, and where it starts. */
interface PlacedDisk {
  readonly disk: Disk;
  readonly start: number;
  readonly end: number;
}

export class SourceDisks {
  /** Bytes of all disks together. */
  readonly size: number;
  readonly #disks: readonly PlacedDisk[];
  readonly #status = new BlockStatus();
  readonly #extent = new Extent();

  constructor(disks: readonly Disk[]) {
    let start = 0;
    this.#disks = disks.map((disk) => {
      const placed = { disk, start, end: start + disk.virtualSize };
      start = placed.end;
      return placed;
    });
    this.size = start;
  }

  /** The disks of open chains, for this thread. */
  static attach(sources: readonly SharedSource[], resources: ThreadResources): SourceDisks {
    const thread = { slot: 0, requestMaintenance: undefined };
    const disks = sources.map(({ layers, snapshot }) => {
      const disk = attachDisk({ layers, writing: undefined }, resources, thread);
      return snapshot === undefined ? disk : disk.openSnapshot(snapshot);
    });
    return new SourceDisks(disks);
  }

  /** The file that the byte at `offset` comes from, as its user named it. */
  pathAt(offset: number): string {
    return this.#find(offset).disk.chain.image.storage.path;
  }

  /** Bytes from `offset` to the end of the cluster that it is in, in the image that is there. */
  restOfCluster(offset: number): number {
    const { disk, start, end } = this.#find(offset);
    const { clusterSize } = disk.chain.image;
    const inDisk = offset - start;
    return Math.min(clusterSize - (inDisk % clusterSize), end - offset);
  }

  /**
   * What the bytes from `offset` on are, and how far that holds; adjacent runs may be alike.
   *
   * @param offset bytes, 0 <= offset < size
   * @param maxLength bytes, > 0
   * @param topOnly what the top image lacks is `backing`, not what shows there
   * @param out overwritten
   * @throws {CorruptionError | StorageError} tables that cannot be right, or read
   */
  runAt(offset: number, maxLength: number, topOnly: boolean, out: SourceRun): void {
    const { disk, start, end } = this.#find(offset);
    const status = this.#status;
    disk.statusAt(offset - start, Math.min(maxLength, end - offset), status);
    out.length = Math.min(status.length, end - offset);
    if (topOnly && status.depth > 0) out.kind = SOURCE.backing;
    else out.kind = status.zero ? SOURCE.zero : SOURCE.data;
  }

  /**
   * Where the bytes from `offset` on are on the host, if they are there as the disk has them.
   *
   * @param out overwritten
   * @throws {CorruptionError | StorageError} tables that cannot be right, or read
   */
  hostBytesAt(offset: number, maxLength: number, out: HostBytes): void {
    const { disk, start, end } = this.#find(offset);
    const inDisk = offset - start;
    const extent = this.#extent;
    let length = Math.min(maxLength, end - offset);
    out.length = 0;
    // By the tables alone: the host would look through all that follows for holes.
    for (const image of disk.chain.images) {
      if (inDisk >= image.virtualSize) return;
      image.mapExtent(inDisk, Math.min(length, image.virtualSize - inDisk), extent);
      length = Math.min(length, extent.length);
      if (extent.kind === EXTENT.unallocated) continue;
      if (extent.kind !== EXTENT.data || image.encrypted) return;
      out.storage = image.dataStorage;
      out.offset = extent.hostOffset;
      out.length = length;
      return;
    }
  }

  /**
   * Read `length` bytes at `offset` into `target.bytes[targetStart]` on.
   *
   * @param offset bytes; offset + length <= size
   * @throws {CorruptionError | StorageError} the target may be written in part
   */
  read(offset: number, length: number, target: NativeBuffer, targetStart: number): void {
    let done = 0;
    while (done < length) {
      const { disk, start, end } = this.#find(offset + done);
      const count = Math.min(length - done, end - offset - done);
      disk.read(offset + done - start, count, target, targetStart + done);
      done += count;
    }
  }

  #find(offset: number): PlacedDisk {
    for (const placed of this.#disks) {
      if (offset < placed.end) return placed;
    }
    throw new RangeError(`no disk has byte ${offset}`);
  }
}
