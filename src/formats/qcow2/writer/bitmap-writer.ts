/**
 * Persistent bitmaps over a session of writing: in use from before its first change on, and stored at its end;
 * and what a change of the disk's size makes of them.
 */

import { TsimgfsError } from "../../../errors.ts";
import { bitCount, bitmapBytes, cutBits, loadBits } from "../bitmap-bits.ts";
import { BITMAP_FLAG, type BitmapEntry, isUsable } from "../bitmap-directory.ts";
import { BitmapTables } from "./bitmap-tables.ts";
import { BITMAP_MEMORY_MAX, type SharedBitmap } from "./dirty-bitmaps.ts";
import { NUMBER } from "./shared-state.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

/** A bitmap that a change of the size rewrites. */
interface ResizedBitmap {
  readonly entry: BitmapEntry;
  readonly bits: Uint8Array;
}

export class BitmapWriter {
  readonly #context: Qcow2WriterContext;
  readonly #tracked: readonly SharedBitmap[];
  readonly #tables: BitmapTables;

  /** @param tracked what the writers mark */
  constructor(context: Qcow2WriterContext, tracked: readonly SharedBitmap[]) {
    this.#context = context;
    this.#tracked = tracked;
    this.#tables = new BitmapTables(context);
  }

  /** Before the first change of the disk: enabled bitmaps are in use, durably. */
  begin(): void {
    this.#tables.markInUse(
      this.#tables.entries().filter(({ flags }) => (flags & BITMAP_FLAG.auto) !== 0),
    );
  }

  /**
   * Refuse a size that a bitmap cannot have.
   *
   * @throws {TsimgfsError} ENOTSUP, as QEMU: one is not consistent; EINVAL: one would have no table; EFBIG: one would
   * need too much memory
   */
  checkResizable(virtualSize: number): void {
    const { path } = this.#context.storage;
    const longest = Math.max(this.#context.state.get(NUMBER.virtualSize), virtualSize);
    let bytes = 0;
    for (const entry of this.#tables.entries()) {
      if (this.#isTracked(entry)) continue;
      if (!isUsable(entry)) {
        const reason = `bitmap "${entry.name}" is inconsistent: remove it before the size changes`;
        throw new TsimgfsError("ENOTSUP", path, reason);
      }
      bytes += bitmapBytes(longest, entry.granularityBits);
    }
    if (bytes > BITMAP_MEMORY_MAX) {
      const reason = `its disabled bitmaps would take ${bytes} bytes of memory, the limit is ${BITMAP_MEMORY_MAX}: remove some before the size changes`;
      throw new TsimgfsError("EFBIG", path, reason);
    }
    const [first] = this.#tables.entries();
    if (virtualSize === 0 && first !== undefined) {
      // An empty table makes the image one that nobody opens.
      const reason = `bitmap "${first.name}" cannot be that of a disk of 0 bytes: remove it first`;
      throw new TsimgfsError("EINVAL", path, reason);
    }
    for (const { name, granularityBits, bits } of this.#tracked) {
      if (bitmapBytes(virtualSize, granularityBits) <= bits.byteLength) continue;
      const reason = `bitmap "${name}" would need more than ${bits.byteLength} bytes of memory: remove it before the disk grows so much`;
      throw new TsimgfsError("EFBIG", path, reason);
    }
  }

  /**
   * Change the size of the disk, and of all bitmaps: what is new is not marked. Those that are enabled are
   * stored at the end.
   */
  resize(virtualSize: number, change: () => void): void {
    const { storage, layout, state } = this.#context;
    const old = { virtualSize: state.get(NUMBER.virtualSize), clusterSize: layout.clusterSize };
    const resized = this.#tables
      .entries()
      .filter((entry) => !this.#isTracked(entry))
      .map((entry): ResizedBitmap => {
        const longest = Math.max(old.virtualSize, virtualSize);
        const bits = new Uint8Array(bitmapBytes(longest, entry.granularityBits));
        loadBits(entry, storage, old, bits);
        return { entry, bits };
      });
    this.#tables.markInUse(resized.map(({ entry }) => entry));
    change();
    for (const { granularityBits, bits } of this.#tracked) {
      cutBits(new Uint8Array(bits), bitCount(virtualSize, granularityBits));
    }
    for (const { entry, bits } of resized) {
      cutBits(bits, bitCount(virtualSize, entry.granularityBits));
      this.#tables.replace(entry, bits);
      this.#tables.setFlags([entry]);
    }
  }

  /** At the end: store the enabled bitmaps. No other thread uses the image any more. */
  store(): void {
    this.#context.allocator.giveBack();
    const stored: BitmapEntry[] = [];
    for (const entry of this.#tables.entries()) {
      const bitmap = this.#tracked.find(({ at }) => at === entry.at);
      if (bitmap === undefined) continue;
      this.#tables.replace(entry, new Uint8Array(bitmap.bits));
      stored.push({ ...entry, flags: entry.flags & ~BITMAP_FLAG.inUse });
    }
    this.#tables.setFlags(stored);
  }

  #isTracked({ at }: BitmapEntry): boolean {
    return this.#tracked.some((bitmap) => bitmap.at === at);
  }
}
