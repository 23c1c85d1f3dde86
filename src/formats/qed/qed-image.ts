/** An open QED image: the mapping of guest offsets. Source: QED specification, "Tables". */

import assert from "node:assert";
import { CorruptionError, hex } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { TableCache } from "../../threads/table-cache.ts";
import {
  type BackingReference,
  EXTENT,
  type Extent,
  type ExtentKind,
  type FormatDescription,
  type FormatImage,
  NO_OFFSET,
  type SnapshotInfo,
  type ThreadResources,
} from "../driver.ts";
import { wholeClusters } from "./header.ts";
import type { QedLayout } from "./layout.ts";
import { ENTRY_UNALLOCATED, ENTRY_ZERO, entryAt } from "./table-entry.ts";

export class QedImage implements FormatImage {
  readonly format = "qed";
  readonly storage: Storage;
  readonly dataStorage: Storage;
  virtualSize: number;
  readonly clusterSize: number;
  readonly backingFile: BackingReference | undefined;
  readonly encrypted = false;
  readonly cipher = undefined;
  readonly layout: QedLayout;
  readonly tableCache: TableCache;

  readonly #l1: Int32Array;
  readonly #l2Coverage: number;
  readonly #sliceEntries: number;
  readonly #headerBytes: number;
  /** Bytes of whole clusters in the file. */
  #fileEnd: number;

  constructor(layout: QedLayout, storage: Storage, resources?: ThreadResources) {
    this.layout = layout;
    this.storage = storage;
    this.dataStorage = storage;
    this.virtualSize = layout.header.image_size;
    this.clusterSize = layout.header.cluster_size;
    this.backingFile = layout.backingFile;
    this.tableCache = new TableCache(layout.tableCache, storage, resources?.counters);
    this.#l1 = new Int32Array(layout.l1);
    this.#l2Coverage = this.clusterSize * layout.tableEntries;
    this.#sliceEntries = layout.tableCache.sliceSize / 8;
    this.#headerBytes = layout.header.header_size * this.clusterSize;
    this.#fileEnd = wholeClusters(storage.length, this.clusterSize);
  }

  /**
   * Take over sizes that a writer has changed.
   *
   * @param fileEnd bytes of whole clusters in the file
   */
  adopt(virtualSize: number, fileEnd: number): void {
    this.virtualSize = virtualSize;
    this.#fileEnd = fileEnd;
  }

  mapExtent(guestOffset: number, maxLength: number, out: Extent): void {
    const limit = Math.min(maxLength, this.virtualSize - guestOffset);
    const inTable = guestOffset % this.#l2Coverage;
    const l1Index = (guestOffset - inTable) / this.#l2Coverage;
    const l2Offset = entryAt(this.#l1, l1Index * 2);
    out.compressedBytes = 0;
    out.hostOffset = NO_OFFSET;
    if (l2Offset === ENTRY_UNALLOCATED) {
      this.#mapUnallocated(l1Index, inTable, limit, out);
      return;
    }
    const tableBytes = this.layout.tableEntries * 8;
    if (!this.#isPlace(l2Offset, tableBytes)) {
      this.#throwOffset(`L2 table offset ${hex(l2Offset)} (L1 entry ${l1Index})`, tableBytes);
    }
    const inCluster = inTable % this.clusterSize;
    const l2Index = (inTable - inCluster) / this.clusterSize;
    const sliceIndex = l2Index % this.#sliceEntries;
    const cache = this.tableCache;
    let entry: number;
    do {
      cache.lookup(l2Offset + (l2Index - sliceIndex) * 8);
      entry = this.#mapClusters(sliceIndex, inCluster, limit, out);
    } while (!cache.isValid());
    if (out.kind === EXTENT.data && !this.#isPlace(entry, this.clusterSize)) {
      this.#throwOffset(
        `cluster offset ${hex(entry)} (L2 entry ${l2Index} at ${hex(l2Offset)})`,
        this.clusterSize,
      );
    }
  }

  mayHaveHostHoles(): boolean {
    return false;
  }

  readCompressed(): never {
    assert.fail("QED has no compressed clusters");
  }

  readSnapshots(): Iterable<SnapshotInfo> {
    return [];
  }

  hasSnapshot(): boolean {
    return false;
  }

  openSnapshot(): never {
    assert.fail("QED has no snapshots");
  }

  describe(): FormatDescription {
    return {
      clusterSize: this.clusterSize,
      encrypted: false,
      // As QEMU: its flag is of qcow2, the need-check bit of QED is not shown.
      dirty: false,
      snapshots: [],
      specific: undefined,
    };
  }

  #mapUnallocated(l1Index: number, inTable: number, limit: number, out: Extent): void {
    let length = this.#l2Coverage - inTable;
    for (let next = l1Index + 1; length < limit; next++) {
      if (entryAt(this.#l1, next * 2) !== ENTRY_UNALLOCATED) break;
      length += this.#l2Coverage;
    }
    out.kind = EXTENT.unallocated;
    out.length = Math.min(length, limit);
  }

  /** Map within the cached slice; returns the first cluster's entry. */
  #mapClusters(sliceIndex: number, inCluster: number, limit: number, out: Extent): number {
    const { words, base } = this.tableCache;
    const first = entryAt(words, base + sliceIndex * 2);
    const kind = kindOf(first);
    let length = this.clusterSize - inCluster;
    let expected = first;
    for (let index = sliceIndex + 1; length < limit && index < this.#sliceEntries; index++) {
      if (kind === EXTENT.data) {
        expected += this.clusterSize;
        if (expected + this.clusterSize > this.#fileEnd) break;
      }
      if (entryAt(words, base + index * 2) !== expected) break;
      length += this.clusterSize;
    }
    out.kind = kind;
    out.length = Math.min(length, limit);
    out.hostOffset = kind === EXTENT.data ? first + inCluster : NO_OFFSET;
    return first;
  }

  /** Whether a table or cluster may be there: aligned, after the header, whole within the file. */
  #isPlace(offset: number, bytes: number): boolean {
    return (
      offset % this.clusterSize === 0 &&
      offset >= this.#headerBytes &&
      offset + bytes <= this.#fileEnd
    );
  }

  #throwOffset(what: string, bytes: number): never {
    const range = `${hex(this.#headerBytes)}..${hex(Math.max(this.#fileEnd - bytes, 0))}`;
    const reason = `${what} is not a multiple of the cluster size ${hex(this.clusterSize)} within ${range}`;
    throw new CorruptionError(this.storage.path, reason);
  }
}

function kindOf(entry: number): ExtentKind {
  if (entry === ENTRY_UNALLOCATED) return EXTENT.unallocated;
  return entry === ENTRY_ZERO ? EXTENT.zero : EXTENT.data;
}
