/**
 * Changing the size of a disk. What is new reads as zeros, whatever lies there in tables and in a longer backing
 * file; what is cut off is given back. At every instant the disk has its old size or its new one.
 */

import { TsimgfsError } from "../errors.ts";
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

  /** As Disk.resize. */
  resize(size: number, preallocation: GrowthPreallocation): void {
    const { chain, writer, changes, resizing } = this.#context;
    const { path } = chain.image.storage;
    const rounded = Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE;
    if (!Number.isSafeInteger(rounded)) {
      throw new TsimgfsError("EFBIG", path, `a size of ${size} is too large`);
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
      if (rounded > old) this.#grow(old, rounded, preallocation);
      else if (rounded < old) this.#shrink(old, rounded);
    } finally {
      resizing.unlock();
    }
  }

  #grow(old: number, size: number, preallocation: GrowthPreallocation): void {
    const { writer, zero, occupy } = this.#context;
    this.#withoutOthers(() => writer.growTables(size));
    this.#pretendSize(size);
    try {
      // What tables and a longer backing file have past the old end would become visible.
      zero(old, size - old);
      const how = preallocation === "off" ? writer.growthOccupation : preallocation;
      if (how !== undefined) occupy(old, size - old, how);
      writer.flush();
    } catch (error) {
      this.#pretendSize(undefined);
      this.#giveUp(old);
      throw error;
    }
    try {
      writer.setVirtualSize(size);
    } finally {
      this.#pretendSize(undefined);
    }
  }

  #shrink(old: number, size: number): void {
    const { writer } = this.#context;
    // Should a crash come in between, nothing of it may come back when the disk grows again.
    this.#zeroOwn(size, old);
    writer.flush();
    writer.setVirtualSize(size);
    this.#withoutOthers(() => writer.dropTail(size));
  }

  /** Let read as zeros what the image itself has in a range: what shows through from below is no part of it. */
  #zeroOwn(start: number, end: number): void {
    const { chain, changes, zero } = this.#context;
    const extent = this.#extent;
    for (let offset = start; offset < end; offset += extent.length) {
      changes.lockShared();
      try {
        chain.image.mapExtent(offset, end - offset, extent);
      } finally {
        changes.unlockShared();
      }
      // The extent is used up: zeroing maps with one of its own.
      if (extent.kind !== EXTENT.unallocated) zero(offset, extent.length);
    }
  }

  /** Growing has failed: what was prepared is given back, as far as that can be done. */
  #giveUp(size: number): void {
    const { writer } = this.#context;
    try {
      this.#withoutOthers(() => writer.dropTail(size));
    } catch {
      // It reads as zeros, which whoever grows the disk next finds.
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
