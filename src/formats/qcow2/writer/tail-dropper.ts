/**
 * Giving back what tables have past the end of a disk: whole L2 tables are unlinked first, and what they refer to
 * is freed then; of the table that the end lies in, the entries behind it. Source: QEMU, block/qcow2.c.
 */

import type { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { NO_OFFSET } from "../../driver.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import { encodeEntry } from "./l2-entry.ts";
import type { MappingCursor } from "./mapping-cursor.ts";
import { NUMBER, type SharedState, WORD } from "./shared-state.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

export class TailDropper {
  readonly #context: Qcow2WriterContext;
  readonly #cursor: MappingCursor;
  readonly #allocator: ClusterAllocator;
  readonly #state: SharedState;
  readonly #clusterSize: number;

  constructor(context: Qcow2WriterContext, cursor: MappingCursor) {
    this.#context = context;
    this.#cursor = cursor;
    this.#allocator = context.allocator;
    this.#state = context.state;
    this.#clusterSize = context.layout.clusterSize;
  }

  /** As FormatWriter.dropTail. */
  drop(virtualSize: number): void {
    this.#allocator.beginShrinking();
    try {
      this.#dropFrom(virtualSize);
    } catch (error) {
      // What a table referred to that was unlinked.
      this.#state.raise(WORD.leaks);
      throw error;
    }
    // Freed at the next barrier, and the file cut at the end.
    this.#allocator.requestMaintenance();
  }

  #dropFrom(virtualSize: number): void {
    const { l2Coverage } = this.#cursor;
    const firstCluster = Math.ceil(virtualSize / this.#clusterSize);
    const tableClusters = l2Coverage / this.#clusterSize;
    const firstTable = Math.ceil(firstCluster / tableClusters);
    this.#dropEntries(firstCluster, firstTable * tableClusters);
    for (let l1Index = firstTable; l1Index < this.#state.get(NUMBER.l1Size); l1Index++) {
      this.#makeRoom();
      const table = this.#exclude(() => this.#cursor.unlinkTable(l1Index));
      if (table === undefined) continue;
      this.#freeReferences(table, l1Index * tableClusters, tableClusters);
    }
  }

  /** Entries of one table become unallocated, if the table is the image's own. */
  #dropEntries(first: number, end: number): void {
    let cluster = first;
    while (cluster < end) {
      this.#makeRoom();
      cluster = this.#exclude(() => {
        if (!this.#cursor.open(cluster * this.#clusterSize)) return end;
        const sliceEnd = Math.min(end, this.#cursor.endCluster);
        let saysSomething = false;
        for (let each = cluster; each < sliceEnd; each++) {
          if (this.#clearEntry(each)) saysSomething = true;
        }
        // Where the table is a hole, zeros would take space, and a full host has none.
        if (saysSomething) this.#cursor.write(cluster, sliceEnd);
        return sliceEnd;
      });
    }
  }

  /** Returns whether it was not unallocated before. It is encoded either way: `entries` has what was there last. */
  #clearEntry(cluster: number): boolean {
    const { layout } = this.#context;
    this.#cursor.decode(cluster);
    this.#cursor.freeOld();
    const { view } = this.#cursor.entries;
    encodeEntry(view, this.#cursor.entryAt(cluster), layout.extendedL2, NO_OFFSET, 0, 0);
    return !this.#cursor.entry.isUnallocated;
  }

  /** One reference less for all that a table refers to, which nothing refers to any more. */
  #freeReferences(table: NativeBuffer, firstCluster: number, clusters: number): void {
    const { sliceEntries } = this.#cursor;
    for (let index = 0; index < clusters; index += sliceEntries) {
      this.#makeRoom();
      this.#exclude(() => {
        for (let each = index; each < index + sliceEntries; each++) {
          // What cannot be right is left to a check.
          if (this.#cursor.decodeFrom(table, each, firstCluster + each)) this.#cursor.freeOld();
        }
        this.#allocator.frees.publish();
      });
    }
  }

  /** Let what waits to be freed become little enough for another slice. */
  #makeRoom(): void {
    if (this.#allocator.frees.hasRoom(this.#cursor.sliceEntries + 1)) return;
    this.#allocator.flush();
    this.#allocator.maintain();
  }

  #exclude<T>(action: () => T): T {
    const { lock } = this.#context;
    lock.lockExclusive();
    try {
      return action();
    } finally {
      lock.unlockExclusive();
    }
  }
}
