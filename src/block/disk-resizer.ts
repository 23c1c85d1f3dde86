/**
 * Changing the size of a disk. What is new reads as zeros, whatever lies there in tables and in a longer backing
 * file; what is cut off is given back. At every instant the disk has its old size or its new one.
 */

import { StorageError, TsimgfsError } from "../errors.ts";
import { EXTENT, Extent } from "../formats/driver.ts";
import type { FormatWriter, Occupation } from "../formats/writer.ts";
import type { Mutex } from "../threads/mutex.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { TableChanges } from "./table-changes.ts";

/** Sizes of disks are multiples of this, bytes. */
const SECTOR_SIZE = 512;

/** What the part that a disk grows by has on the host: nothing, places in a sparse file, space, zeros. */
export const GROWTH_PREALLOCATIONS = ["off", "metadata", "falloc", "full"] as const;
export type GrowthPreallocation = (typeof GROWTH_PREALLOCATIONS)[number];

/** A change of the size, in pieces: whoever stops between two of them leaves the size that there was. */
export type ResizePieces = Generator<void, void, void>;

/** The host has no room. */
const NO_ROOM: ReadonlySet<string> = new Set(["ENOSPC", "EDQUOT"]);

/** Tables are changed for so many clusters at once. */
const PIECE_CLUSTERS = 8192;
/** The host sets aside, or writes, so many bytes at once. */
const PIECE_SIZES: Readonly<Partial<Record<Occupation, number>>> = {
  falloc: 256 * 1024 ** 2,
  full: 16 * 1024 ** 2,
};

export interface DiskResizerContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly changes: TableChanges;
  /** Taken before the lock of the image: changes of the size go one after the other. */
  readonly resizing: Mutex;
  /** Makes a range read as zeros that need no space. */
  readonly zero: (guestOffset: number, length: number) => void;
  /** Gives each byte of a range a place. */
  readonly occupy: (guestOffset: number, length: number, how: Occupation) => void;
}

export class DiskResizer {
  readonly #context: DiskResizerContext;
  readonly #extent = new Extent();

  constructor(context: DiskResizerContext) {
    this.#context = context;
  }

  /** As Disk.resizeInPieces. */
  *resize(size: number, preallocation: GrowthPreallocation): ResizePieces {
    const { chain, writer, changes, resizing } = this.#context;
    const { path } = chain.image.storage;
    const rounded = Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE;
    if (!Number.isSafeInteger(rounded)) {
      const reason = `its size would be above the limit of 2^53 - ${SECTOR_SIZE} bytes`;
      throw new TsimgfsError("EFBIG", path, reason);
    }
    resizing.lock();
    try {
      changes.lockShared();
      const old = chain.virtualSize;
      changes.unlockShared();
      writer.checkResizable(old, rounded);
      if (rounded <= old && preallocation !== "off") {
        throw new TsimgfsError("EINVAL", path, "preallocation is for disks that grow");
      }
      writer.begin("contents");
      if (rounded > old) yield* this.#grow(old, rounded, preallocation);
      else if (rounded < old) yield* this.#shrink(old, rounded);
    } finally {
      resizing.unlock();
    }
  }

  *#grow(old: number, size: number, preallocation: GrowthPreallocation): ResizePieces {
    const { writer, zero, occupy } = this.#context;
    this.#withoutOthers(() => writer.growTables(size));
    this.#pretendSize(size);
    let isReady = false;
    try {
      // What tables and a longer backing file have past the old end would become visible.
      yield* inPieces(old, size, this.#pieceSize(), zero);
      const how = preallocation === "off" ? writer.growthOccupation : preallocation;
      if (how !== undefined) {
        yield* inPieces(old, size, this.#pieceSize(how), (offset, length) =>
          occupy(offset, length, how),
        );
      }
      writer.flush();
      isReady = true;
    } finally {
      if (!isReady) {
        this.#pretendSize(undefined);
        this.#giveUp(old);
      }
    }
    try {
      writer.setVirtualSize(size);
    } finally {
      this.#pretendSize(undefined);
    }
  }

  *#shrink(old: number, size: number): ResizePieces {
    const { writer } = this.#context;
    // Should a crash come in between, nothing of it may come back when the disk grows again.
    yield* this.#zeroOwn(size, old);
    writer.flush();
    writer.setVirtualSize(size);
    this.#dropTail(size);
  }

  /** Let read as zeros what the image itself has in a range: what shows through from below is no part of it. */
  *#zeroOwn(start: number, end: number): ResizePieces {
    const { chain, changes, zero } = this.#context;
    const extent = this.#extent;
    const pieceSize = this.#pieceSize();
    for (let offset = start; offset < end; offset += extent.length) {
      const length = Math.min(end - offset, pieceSize);
      changes.lockShared();
      try {
        chain.image.mapExtent(offset, length, extent);
      } finally {
        changes.unlockShared();
      }
      // The extent is used up: zeroing maps with one of its own.
      if (extent.kind !== EXTENT.unallocated) zero(offset, extent.length);
      yield;
    }
  }

  /** What is done at once, bytes: whole clusters. */
  #pieceSize(how: Occupation = "metadata"): number {
    const { clusterSize, unit } = this.#context.writer;
    const all = Number.POSITIVE_INFINITY;
    // Of each byte, no tables say where it is.
    const byTables = unit === 1 ? all : PIECE_CLUSTERS * clusterSize;
    return Math.min(byTables, PIECE_SIZES[how] ?? all);
  }

  /** Growing has failed, or was stopped: that is what is to be told, whatever becomes of what was prepared. */
  #giveUp(size: number): void {
    try {
      this.#dropTail(size);
    } catch {
      // It reads as zeros, which whoever grows the disk next finds.
    }
  }

  /** What tables have past the end of the disk is given back, as far as the host has room for the tables. */
  #dropTail(size: number): void {
    const { writer } = this.#context;
    try {
      this.#withoutOthers(() => writer.dropTail(size));
    } catch (error) {
      // The disk has the size that it is to have. What is left reads as zeros, which whoever grows the disk next finds.
      // Any other failure may be of more than that: a sync that has failed, or damage.
      if (!(error instanceof StorageError && NO_ROOM.has(error.code))) throw error;
    }
  }

  /** Do something to tables while no other thread changes them. */
  #withoutOthers(action: () => void): void {
    const { changes } = this.#context;
    changes.claimAll();
    try {
      action();
    } finally {
      changes.releaseAll();
    }
  }

  #pretendSize(size: number | undefined): void {
    const { writer, changes } = this.#context;
    writer.pretendSize(size);
    // Under the lock, the writer takes it over.
    changes.lockShared();
    changes.unlockShared();
  }
}

/** Do something with a range, in pieces that begin and end at multiples of their size: clusters stay whole. */
function* inPieces(
  start: number,
  end: number,
  pieceSize: number,
  action: (offset: number, length: number) => void,
): ResizePieces {
  for (let offset = start; offset < end; ) {
    const length = Math.min(pieceSize - (offset % pieceSize), end - offset);
    action(offset, length);
    offset += length;
    yield;
  }
}
