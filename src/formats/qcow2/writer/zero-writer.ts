/**
 * Making ranges of a qcow2 image read as zeros, or as the backing file, by a change of tables. Source:
 * QEMU, block/qcow2-cluster.c.
 */

import type { WritableStorage } from "../../../storage/storage.ts";
import { NO_OFFSET } from "../../driver.ts";
import {
  ALLOCATION,
  type Deallocation,
  type WritePlan,
  type ZeroProgress,
  type ZeroSpace,
} from "../../writer.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import { encodeEntry } from "./l2-entry.ts";
import type { MappingCursor } from "./mapping-cursor.ts";
import { type SharedState, WORD } from "./shared-state.ts";
import { ALL_SUBCLUSTERS, bitRange } from "./subclusters.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

/** What becomes of entries: as ZeroSpace says, or nothing is left of them. */
type EntryFate = ZeroSpace | "deallocate";

export class ZeroWriter implements Deallocation {
  readonly #cursor: MappingCursor;
  readonly #allocator: ClusterAllocator;
  readonly #state: SharedState;
  readonly #dataFile: WritableStorage | undefined;
  readonly #version: number;
  readonly #extended: boolean;
  readonly #clusterSize: number;
  readonly #unit: number;

  constructor(context: Qcow2WriterContext, cursor: MappingCursor, unit: number) {
    const { layout } = context;
    this.#cursor = cursor;
    this.#allocator = context.allocator;
    this.#state = context.state;
    this.#dataFile = layout.dataFile === undefined ? undefined : context.dataStorage;
    this.#version = layout.header.version;
    this.#extended = layout.extendedL2;
    this.#clusterSize = layout.clusterSize;
    this.#unit = unit;
  }

  /** As FormatWriter.zero. */
  zero(
    guestOffset: number,
    length: number,
    space: ZeroSpace,
    backed: number,
    plan: WritePlan,
    out: ZeroProgress,
  ): void {
    this.#change(guestOffset, length, space, backed, plan, out);
    // A table that hides something, or is to say zeros itself, stays whatever it says.
    if (out.done === 0 || out.mustWrite || backed > 0) return;
    this.#state.noteZeroed(Math.floor(guestOffset / this.#cursor.l2Coverage));
  }

  deallocate(guestOffset: number, length: number, plan: WritePlan, out: ZeroProgress): void {
    this.#change(guestOffset, length, "deallocate", 0, plan, out);
    const table = Math.floor(guestOffset / this.#cursor.l2Coverage);
    const end = guestOffset + out.done;
    // Who goes through the disk from its start leaves a table that says nothing behind.
    if (out.done > 0 && (out.done === length || end % this.#cursor.l2Coverage === 0)) {
      this.#cursor.dropTable(table, "nothing");
    }
  }

  #change(
    guestOffset: number,
    length: number,
    space: EntryFate,
    backed: number,
    plan: WritePlan,
    out: ZeroProgress,
  ): void {
    out.done = 0;
    out.mustWrite = false;
    out.need = ALLOCATION.inPlace;
    if (!this.#state.isSet(WORD.dirty)) {
      out.need = ALLOCATION.needsReservation;
      return;
    }
    if (!this.#allocator.frees.hasRoom(this.#cursor.sliceEntries + 1)) {
      out.need = ALLOCATION.needsBarrier;
      return;
    }
    const left = this.#cursor.l2Coverage - (guestOffset % this.#cursor.l2Coverage);
    if (!this.#cursor.hasTable(guestOffset)) {
      // Nothing is allocated, and nothing shows through.
      if (backed <= 0) {
        this.#zeroDataFile(guestOffset, Math.min(length, left), space);
        out.done = Math.min(length, left);
        return;
      }
      if (this.#version < 3) {
        out.done = Math.min(length, backed, left);
        out.mustWrite = true;
        return;
      }
    }
    out.need = this.#cursor.openOwn(guestOffset, plan);
    if (out.need !== ALLOCATION.inPlace) return;
    this.#changeSlice(guestOffset, length, space, backed, out);
  }

  #changeSlice(
    guestOffset: number,
    length: number,
    space: EntryFate,
    backed: number,
    out: ZeroProgress,
  ): void {
    const clusterSize = this.#clusterSize;
    const cursor = this.#cursor;
    const guestEnd = guestOffset + length;
    const first = Math.floor(guestOffset / clusterSize);
    const end = Math.min(Math.ceil(guestEnd / clusterSize), cursor.endCluster);
    let cluster = first;
    for (; cluster < end; cluster++) {
      const start = cluster * clusterSize;
      const from = Math.max(0, guestOffset - start) / this.#unit;
      // The end of the disk counts as aligned.
      const to = Math.ceil(Math.min(clusterSize, guestEnd - start) / this.#unit);
      cursor.decode(cluster);
      const covered = this.#extended ? bitRange(from, to) : ALL_SUBCLUSTERS;
      if (space === "deallocate") {
        cursor.freeOld();
        encodeEntry(cursor.entries.view, cursor.entryAt(cluster), this.#extended, NO_OFFSET, 0, 0);
      } else if (!this.#zeroEntry(cluster, covered, space, guestOffset + backed > start)) break;
    }
    if (cluster === first) {
      out.mustWrite = true;
      out.done = Math.min(length, (first + 1) * clusterSize - guestOffset);
      return;
    }
    out.done = Math.min(guestEnd, cluster * clusterSize) - guestOffset;
    this.#zeroDataFile(guestOffset, out.done, space);
    cursor.write(first, cluster);
  }

  /**
   * Prepare the entry of a cluster, decoded, whose sub-clusters `covered` become zeros.
   *
   * @returns false if that takes more than a change of tables
   */
  #zeroEntry(cluster: number, covered: number, space: ZeroSpace, isBacked: boolean): boolean {
    const cursor = this.#cursor;
    const { entry } = cursor;
    const { view } = cursor.entries;
    const at = cursor.entryAt(cluster);
    if (this.#version < 3) {
      // No zero clusters: only nothing at all reads as zeros, where no backing file shows through.
      if (isBacked || (space === "keep" && entry.hasCluster)) return false;
      cursor.freeOld();
      encodeEntry(view, at, false, NO_OFFSET, 0, 0);
      return true;
    }
    const isWhole = covered >>> 0 === ALL_SUBCLUSTERS;
    if (entry.compressed && !isWhole) return false;
    const zeroBits = isWhole ? ALL_SUBCLUSTERS : (entry.zeroBits | covered) >>> 0;
    const dataBits = isWhole ? 0 : entry.dataBits & ~covered;
    // Its place on the host stays if it still has data there, or if that is wanted.
    const isPartial = dataBits !== 0 || zeroBits !== ALL_SUBCLUSTERS;
    if (entry.hasCluster && (isPartial || (space === "keep" && entry.copied))) {
      if (!entry.copied) return false;
      encodeEntry(view, at, this.#extended, entry.host, zeroBits, dataBits);
      return true;
    }
    cursor.freeOld();
    encodeEntry(view, at, this.#extended, NO_OFFSET, zeroBits, 0);
    return true;
  }

  /** The bytes in an external data file become zeros too: nothing else is at their place. */
  #zeroDataFile(guestOffset: number, length: number, space: EntryFate): void {
    this.#dataFile?.zeroAt(guestOffset, length, space === "keep" ? "keep" : "release");
  }
}
