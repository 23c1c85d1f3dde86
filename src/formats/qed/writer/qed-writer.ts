/**
 * Changing a QED image: where a write goes, and how entries of L2 tables come to refer to it. Tables are
 * written through; native-notes/writing.md says in which order. What several threads must not do at once is under the
 * exclusive lock of the image, which the block layer holds.
 */

import assert from "node:assert";
import { hex } from "../../../errors.ts";
import {
  ALLOCATION,
  type Allocation,
  type FormatWriter,
  type HostPlace,
  type WritePlan,
  type ZeroProgress,
  type ZeroSpace,
} from "../../writer.ts";
import { ENTRY_ZERO } from "../table-entry.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import { DataPlaces } from "./data-places.ts";
import { MappingCursor } from "./mapping-cursor.ts";
import { checkResizable, checkTail, setVirtualSize } from "./resizer.ts";
import { NUMBER, type SharedState, WORD } from "./shared-state.ts";
import type { QedWriterContext } from "./writer-context.ts";
import { ZeroWriter } from "./zero-writer.ts";

export class QedWriter implements FormatWriter {
  readonly unit: number;
  readonly clusterSize: number;
  readonly hasZeroClusters = true;

  readonly #context: QedWriterContext;
  readonly #allocator: ClusterAllocator;
  readonly #state: SharedState;
  readonly #cursor: MappingCursor;
  readonly #places: DataPlaces;
  readonly #zeroWriter: ZeroWriter;
  #generation = -1;
  #pretendedSize: number | undefined;

  constructor(context: QedWriterContext) {
    const { cluster_size } = context.layout.header;
    this.#context = context;
    this.#allocator = context.allocator;
    this.#state = context.state;
    this.#cursor = new MappingCursor(context);
    this.#places = new DataPlaces(context, this.#cursor);
    this.#zeroWriter = new ZeroWriter(context, this.#cursor, this.#places);
    this.clusterSize = cluster_size;
    this.unit = cluster_size;
  }

  begin(): void {
    if (this.#state.isSet(WORD.corrupt)) this.#allocator.refuseCorrupt("it was found corrupt");
    if (this.#state.isSet(WORD.begun)) return;
    this.#allocator.requestMaintenance();
    this.#allocator.changeHeader(() => {
      if (this.#context.headerWriter.clearAutoclear()) this.#allocator.sync();
    });
    this.#state.raise(WORD.begun);
  }

  mapInPlace(guestOffset: number, maxLength: number, out: HostPlace): number {
    const cursor = this.#cursor;
    const cluster = Math.floor(guestOffset / this.clusterSize);
    const inCluster = guestOffset % this.clusterSize;
    let host: number;
    let length: number;
    do {
      // Readers bring slices into the cache meanwhile, and may take the place of this one.
      if (!cursor.open(guestOffset)) return 0;
      host = cursor.entryOf(cluster);
      length =
        host > ENTRY_ZERO ? this.#places.lengthOfRun(cluster, host, inCluster + maxLength) : 0;
    } while (!cursor.isValid());
    if (length === 0) return 0;
    this.#places.check(cluster, host, length);
    out.hostOffset = host + inCluster;
    return Math.min(length - inCluster, maxLength);
  }

  allocate(guestOffset: number, length: number, plan: WritePlan): Allocation {
    // The need-check bit is there before anything that a crash could leave behind.
    if (!this.#state.isSet(WORD.needCheck)) return ALLOCATION.needsReservation;
    const table = this.#cursor.openOwn(guestOffset);
    if (table !== ALLOCATION.inPlace) return table;
    const { clusterSize } = this;
    const cluster = Math.floor(guestOffset / clusterSize);
    if (this.#cursor.entryOf(cluster) > ENTRY_ZERO) return ALLOCATION.inPlace;
    plan.replaces = 0;
    plan.fresh = !this.#allocator.takeGivenUp();
    let count = 1;
    if (plan.fresh) {
      count = this.#allocator.take(this.#wantedClusters(cluster, guestOffset + length));
      if (count === 0) return ALLOCATION.needsReservation;
    }
    plan.coverStart = cluster * clusterSize;
    plan.coverEnd = (cluster + count) * clusterSize;
    plan.hostOffset = this.#allocator.taken * clusterSize;
    return ALLOCATION.planned;
  }

  /** Clusters from `cluster` on that have no place and get theirs together. */
  #wantedClusters(cluster: number, guestEnd: number): number {
    const cursor = this.#cursor;
    const end = Math.min(Math.ceil(guestEnd / this.clusterSize), cursor.endCluster);
    let next = cluster + 1;
    while (next < end && cursor.entryOf(next) <= ENTRY_ZERO) next++;
    return next - cluster;
  }

  link(plan: WritePlan): void {
    const cursor = this.#cursor;
    const end = plan.coverEnd / this.clusterSize;
    let cluster = plan.coverStart / this.clusterSize;
    while (cluster < end) {
      const start = cluster * this.clusterSize;
      assert(cursor.open(start), "the table of a plan is gone");
      const sliceEnd = Math.min(end, cursor.endCluster);
      this.#linkInSlice(cluster, sliceEnd, plan.hostOffset + start - plan.coverStart);
      cluster = sliceEnd;
    }
  }

  /** Link clusters whose places follow each other from `host` on, all in the open slice. */
  #linkInSlice(first: number, end: number, host: number): void {
    const cursor = this.#cursor;
    for (let cluster = first; cluster < end; cluster++) {
      const place = host + (cluster - first) * this.clusterSize;
      const old = cursor.entryOf(cluster);
      // What failed half-way is linked again: some entries may be as they should be.
      if (old > ENTRY_ZERO && old !== place) {
        const at = cursor.placeOf(cluster);
        this.#allocator.refuseCorrupt(`L2 entry at ${hex(at)}: ${hex(old)} is not by us`, at);
      }
      cursor.setEntry(cluster, place);
    }
    cursor.write(first, end);
  }

  abandon(plan: WritePlan): void {
    const count = (plan.coverEnd - plan.coverStart) / this.clusterSize;
    this.#allocator.giveUp(plan.hostOffset / this.clusterSize, count);
  }

  zero(
    guestOffset: number,
    length: number,
    space: ZeroSpace,
    backed: number,
    _plan: WritePlan,
    out: ZeroProgress,
  ): void {
    this.#zeroWriter.zero(guestOffset, length, space, backed, out);
  }

  flush(): void {
    this.#allocator.sync();
  }

  changeHeader(action: () => void): void {
    this.#allocator.changeHeader(action);
  }

  reserve(): void {
    this.#allocator.reserve();
  }

  maintain(): void {
    this.#allocator.maintain();
  }

  hasFrees(): boolean {
    return false;
  }

  close(): void {
    if (this.#state.isSet(WORD.corrupt)) this.flush();
    else this.#allocator.close();
  }

  checkResizable(oldSize: number, newSize: number): void {
    checkResizable(this.#context, oldSize, newSize);
  }

  growTables(): void {
    // They have room for all that `checkResizable` lets through.
    checkTail(this.#context);
  }

  setVirtualSize(virtualSize: number): void {
    setVirtualSize(this.#context, virtualSize);
  }

  dropTail(): void {
    // The disk does not shrink, and nothing is allocated ahead of its growth but zeros.
  }

  pretendSize(virtualSize: number | undefined): void {
    this.#pretendedSize = virtualSize;
    this.#generation = -1;
  }

  refresh(generation: number): void {
    if (generation === this.#generation) return;
    this.#generation = generation;
    this.#context.image.adopt(
      this.#pretendedSize ?? this.#state.get(NUMBER.virtualSize),
      this.#state.get(NUMBER.fileClusters) * this.clusterSize,
    );
  }
}
