/** What the bytes of a disk are: in the image itself, and which image of the chain they come from. */

import { UnsupportedError } from "../errors.ts";
import { EXTENT, Extent, type FormatImage } from "../formats/driver.ts";
import type { HostRun } from "../storage/storage.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { Disk } from "./disk.ts";

/** What the image itself says of its disk, bytes; they add up to the virtual size. */
export interface GuestAllocation {
  readonly data: number;
  /** Reads as zeros, whatever a backing file has; of raw images, the holes of the file. */
  readonly zero: number;
  /** The image says nothing: a backing file shows through, or zeros. */
  readonly unallocated: number;
  readonly compressed: number;
}

/** What one image of a chain serves of the disk. */
export interface LayerAllocation {
  /** 0: the image itself. */
  readonly depth: number;
  readonly filename: string;
  /** Bytes that it says something about, be it zeros, and no image above it. */
  readonly bytes: number;
}

export interface DiskAllocation {
  readonly guest: GuestAllocation;
  readonly layers: readonly LayerAllocation[];
  /** Bytes that no image says anything about: they read as zeros. */
  readonly nowhere: number;
}

/** Extents that are looked at while the lock of the image is held: a millisecond, or two. */
const PIECE_EXTENTS = 64;

/** Bytes that are mapped at once, at the most: jumping over tables that are not there takes time, too. */
const MAP_MAX = 2 ** 36;

/*
 * What looking at an extent costs: an entry of a table is 1. Measured: 16M entries in long runs take about a
 * second, as many extents 7 s.
 */
const EXTENT_WORK = 16;
/** Entries that one mapping looks at, at the most: those of a slice. */
const SLICE_ENTRIES = 512;
/** Asking the host about a raw file. */
const HOST_RUN_WORK = 64;

/** Our limits on the work for a mount: what any image may take, and what none may, half a minute. */
const MOUNTED_WORK_MIN = 2 ** 26;
const MOUNTED_WORK_MAX = 2 ** 30;

/**
 * A limit for disks that are mounted: tables can have as many entries as the files have room for. A hostile
 * L1 table may name the same L2 table a million times.
 */
export function mountedWorkMax(disk: Disk): number {
  const stored = disk.inspect(() =>
    disk.chain.images.reduce((sum, { storage }) => sum + storage.allocatedSize(), 0),
  );
  return Math.min(MOUNTED_WORK_MIN + (stored / 8) * (EXTENT_WORK + 1), MOUNTED_WORK_MAX);
}

/**
 * Look at all of a disk. Others may write to it: the lock is held for short pieces.
 *
 * @param workMax in table entries, as of `mountedWorkMax`
 * @throws {CorruptionError} a table cannot be right
 * @throws {UnsupportedError} it is more work than the limit
 * @throws {StorageError}
 */
export function countDisk(disk: Disk, workMax: number): DiskAllocation {
  const count = new DiskCount();
  for (let left = true; left; ) {
    left = disk.inspect(() => count.lookAt(disk.chain, PIECE_EXTENTS));
    if (count.work > workMax) {
      const reason =
        "to look at all of its tables would take too long in a mount; tsimgfs stats does it offline";
      throw new UnsupportedError(disk.chain.image.storage.path, reason);
    }
  }
  return count.result();
}

class DiskCount {
  /** In table entries, about. */
  work = 0;
  readonly #extent = new Extent();
  readonly #run: HostRun = { isData: true, length: 0 };
  #position = 0;
  #filenames: readonly string[] = [];
  /** Bytes of the image itself, by kind of extent. */
  readonly #kinds = new Float64Array(Object.keys(EXTENT).length);
  /** Bytes that each image serves. */
  #served = new Float64Array();
  // The last extent of each image: where it ends, and its kind. While others write it may be one of lately.
  #ends = new Float64Array();
  #lastKinds = new Uint8Array();
  #nowhere = 0;

  /** Look at the next extents, as many as `count`. Returns whether something is left. */
  lookAt(chain: BackingChain, count: number): boolean {
    if (this.#served.length === 0) {
      // Of the start: while they are looked at, a chain can only become shorter.
      this.#filenames = chain.images.map(({ storage }) => storage.path);
      this.#served = new Float64Array(chain.images.length);
      this.#ends = new Float64Array(chain.images.length);
      this.#lastKinds = new Uint8Array(chain.images.length);
    }
    for (let left = count; left > 0; left--) {
      const length = chain.virtualSize - this.#position;
      if (length <= 0) return false;
      this.#position += this.#countExtent(chain.images, length);
    }
    return true;
  }

  result(): DiskAllocation {
    const bytes = (kind: number): number => this.#kinds[kind] ?? 0;
    return {
      guest: {
        data: bytes(EXTENT.data),
        zero: bytes(EXTENT.zero),
        unallocated: bytes(EXTENT.unallocated),
        compressed: bytes(EXTENT.compressed),
      },
      layers: this.#filenames.map((filename, depth) => ({
        depth,
        filename,
        bytes: this.#served[depth] ?? 0,
      })),
      nowhere: this.#nowhere,
    };
  }

  /** Returns how long the extent is, bytes. */
  #countExtent(images: readonly FormatImage[], limit: number): number {
    let length = limit;
    let topKind: number = EXTENT.unallocated;
    let server = -1;
    for (let depth = 0; depth < images.length; depth++) {
      const image = images[depth];
      if (image === undefined || this.#position >= image.virtualSize) break;
      if ((this.#ends[depth] ?? 0) <= this.#position) this.#map(image, depth);
      length = Math.min(length, (this.#ends[depth] ?? 0) - this.#position);
      const kind = this.#lastKinds[depth] ?? EXTENT.unallocated;
      if (depth === 0) topKind = kind;
      if (kind !== EXTENT.unallocated) {
        server = depth;
        break;
      }
    }
    this.#kinds[topKind] = (this.#kinds[topKind] ?? 0) + length;
    if (server < 0) this.#nowhere += length;
    else this.#served[server] = (this.#served[server] ?? 0) + length;
    return length;
  }

  /** Map the extent at the position in one image. */
  #map(image: FormatImage, depth: number): void {
    const extent = this.#extent;
    image.mapExtent(this.#position, MAP_MAX, extent);
    let { kind } = extent;
    if (image.format === "raw") {
      // A raw image has nothing but the host's word for it.
      this.work += HOST_RUN_WORK;
      image.dataStorage.hostRun(extent.hostOffset, this.#run);
      extent.length = Math.min(extent.length, this.#run.length);
      if (!this.#run.isData) kind = EXTENT.zero;
    } else {
      const entries = Math.ceil(extent.length / image.clusterSize);
      this.work += EXTENT_WORK + Math.min(entries, SLICE_ENTRIES);
    }
    this.#lastKinds[depth] = kind;
    this.#ends[depth] = this.#position + extent.length;
  }
}
