/** Making ranges of a QED image read as zeros by a change of tables. Source: FORMATS, 2. */

import { ALLOCATION, type ZeroProgress } from "../../writer.ts";
import { ENTRY_UNALLOCATED, ENTRY_ZERO } from "../table-entry.ts";
import type { MappingCursor } from "./mapping-cursor.ts";
import { type SharedState, WORD } from "./shared-state.ts";

export class ZeroWriter {
  readonly #cursor: MappingCursor;
  readonly #state: SharedState;
  readonly #clusterSize: number;

  constructor(cursor: MappingCursor, state: SharedState, clusterSize: number) {
    this.#cursor = cursor;
    this.#state = state;
    this.#clusterSize = clusterSize;
  }

  /**
   * As FormatWriter.zero. An entry that has a cluster keeps it, as for QEMU: QED cannot say that a cluster is
   * free. Zeros are written there, which gives the space back to the host.
   */
  zero(guestOffset: number, length: number, backed: number, out: ZeroProgress): void {
    out.done = 0;
    out.mustWrite = false;
    out.need = ALLOCATION.inPlace;
    const cursor = this.#cursor;
    if (!cursor.open(guestOffset)) {
      const left = cursor.l2Coverage - (guestOffset % cursor.l2Coverage);
      // Nothing is allocated, and nothing shows through.
      if (backed <= 0) {
        out.done = Math.min(length, left);
        return;
      }
      out.need = this.#state.isSet(WORD.needCheck)
        ? cursor.openOwn(guestOffset)
        : ALLOCATION.needsReservation;
      if (out.need !== ALLOCATION.inPlace) return;
    }
    const clusterSize = this.#clusterSize;
    const guestEnd = guestOffset + length;
    const first = guestOffset / clusterSize;
    const limit = Math.min(Math.ceil(guestEnd / clusterSize), cursor.endCluster);
    out.mustWrite = cursor.entryOf(first) > ENTRY_ZERO;
    const end = out.mustWrite
      ? this.#endOfData(first, limit)
      : this.#zeroEntries(first, limit, guestOffset + backed);
    out.done = Math.min(guestEnd, end * clusterSize) - guestOffset;
  }

  #endOfData(first: number, limit: number): number {
    let cluster = first + 1;
    while (cluster < limit && this.#cursor.entryOf(cluster) > ENTRY_ZERO) cluster++;
    return cluster;
  }

  /** Let entries say zeros, up to the next one that has a cluster; returns where that is. */
  #zeroEntries(first: number, limit: number, backedEnd: number): number {
    const cursor = this.#cursor;
    let isChanged = false;
    let cluster = first;
    for (; cluster < limit; cluster++) {
      const entry = cursor.entryOf(cluster);
      if (entry > ENTRY_ZERO) break;
      const shows = entry === ENTRY_UNALLOCATED && cluster * this.#clusterSize < backedEnd;
      if (shows) isChanged = true;
      cursor.setEntry(cluster, shows ? ENTRY_ZERO : entry);
    }
    if (isChanged) cursor.write(first, cluster);
    return cluster;
  }
}
