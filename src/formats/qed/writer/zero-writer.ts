/** Making ranges of a QED image read as zeros. Source: QED specification, "Tables". */

import type { WritableStorage } from "../../../storage/storage.ts";
import { ALLOCATION, type ZeroProgress, type ZeroSpace } from "../../writer.ts";
import { ENTRY_UNALLOCATED, ENTRY_ZERO } from "../table-entry.ts";
import type { DataPlaces } from "./data-places.ts";
import type { MappingCursor } from "./mapping-cursor.ts";
import { type SharedState, WORD } from "./shared-state.ts";
import type { QedWriterContext } from "./writer-context.ts";

export class ZeroWriter {
  readonly #cursor: MappingCursor;
  readonly #places: DataPlaces;
  readonly #storage: WritableStorage;
  readonly #state: SharedState;
  readonly #clusterSize: number;

  constructor(
    { layout, storage, state }: QedWriterContext,
    cursor: MappingCursor,
    places: DataPlaces,
  ) {
    this.#cursor = cursor;
    this.#places = places;
    this.#storage = storage;
    this.#state = state;
    this.#clusterSize = layout.header.cluster_size;
  }

  /**
   * As FormatWriter.zero. An entry that has a cluster keeps it, as for QEMU: QED cannot say that a cluster is
   * free. The cluster itself becomes zeros, as a whole, and its space can be given back to the host.
   */
  zero(
    guestOffset: number,
    length: number,
    space: ZeroSpace,
    backed: number,
    out: ZeroProgress,
  ): void {
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
    const end =
      cursor.entryOf(first) > ENTRY_ZERO
        ? this.#zeroData(first, limit, space)
        : this.#zeroEntries(first, limit, guestOffset + backed);
    out.done = Math.min(guestEnd, end * clusterSize) - guestOffset;
  }

  /** Let the data of clusters be zeros, as far as they follow each other; returns where that ends. */
  #zeroData(first: number, limit: number, space: ZeroSpace): number {
    const clusterSize = this.#clusterSize;
    const host = this.#cursor.entryOf(first);
    const length = this.#places.lengthOfRun(first, host, (limit - first) * clusterSize);
    this.#places.check(first, host, length);
    this.#storage.zeroAt(host, length, space);
    return first + length / clusterSize;
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
