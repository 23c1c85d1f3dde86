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

/** Table entries that one mapping looks at: a longer extent jumps over tables that are not there. */
const SLICE_ENTRIES = 512;
/** What asking the host about a raw file costs, in table entries. */
const HOST_RUN_ENTRIES = 64;

/**
 * Look at all of a disk. Others may write to it: the lock is held for short pieces.
 *
 * @param entriesMax table entries that are looked at, about
 * @throws {CorruptionError} a table cannot be right
 * @throws {UnsupportedError} there are more entries than the limit
 * @throws {StorageError}
 */
export function countDisk(disk: Disk, entriesMax: number): DiskAllocation {
  const count = new DiskCount();
  for (let left = true; left; ) {
    left = disk.inspect(() => count.lookAt(disk.chain, PIECE_EXTENTS));
    if (count.entries > entriesMax) {
      const reason = `its tables have more than ${entriesMax} entries: too many to be counted here; tsimgfs stats does it offline`;
      throw new UnsupportedError(disk.chain.image.storage.path, reason);
    }
  }
  return count.result();
}

class DiskCount {
  /** Table entries that were looked at, about. */
  entries = 0;
  readonly #extent = new Extent();
  readonly #run: HostRun = { isData: true, length: 0 };
  #position = 0;
  #filenames: readonly string[] = [];
  /** Bytes of the image itself, by kind of extent. */
  readonly #kinds = new Float64Array(Object.keys(EXTENT).length);
  /** Bytes that each image serves. */
  #served = new Float64Array();
  #nowhere = 0;

  /** Look at the next extents, as many as `count`. Returns whether something is left. */
  lookAt(chain: BackingChain, count: number): boolean {
    if (this.#served.length === 0) {
      // Of the start: while they are looked at, a chain can only become shorter.
      this.#filenames = chain.images.map(({ storage }) => storage.path);
      this.#served = new Float64Array(chain.images.length);
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
      const kind = this.#map(image, length);
      length = this.#extent.length;
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

  /** Map an extent of one image; returns its kind. */
  #map(image: FormatImage, limit: number): number {
    const extent = this.#extent;
    image.mapExtent(this.#position, limit, extent);
    if (image.format !== "raw") {
      this.entries += 1 + Math.min(Math.floor(extent.length / image.clusterSize), SLICE_ENTRIES);
      return extent.kind;
    }
    // A raw image has nothing but the host's word for it.
    this.entries += HOST_RUN_ENTRIES;
    image.dataStorage.hostRun(extent.hostOffset, this.#run);
    extent.length = Math.min(extent.length, this.#run.length);
    return this.#run.isData ? EXTENT.data : EXTENT.zero;
  }
}
