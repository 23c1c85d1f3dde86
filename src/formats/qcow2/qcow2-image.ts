/** An open qcow2 image: the mapping of guest offsets through L1 and L2 tables. */

import { swap32 } from "../../binary/words.ts";
import { CorruptionError, hex } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { TableCache } from "../../threads/table-cache.ts";
import type { CompressedClusters } from "../compression/cluster-cache.ts";
import {
  type BackingReference,
  EXTENT,
  type Extent,
  type FormatDescription,
  type FormatImage,
  NO_OFFSET,
  type SnapshotInfo,
  type ThreadResources,
} from "../driver.ts";
import type { DataCipher } from "../encryption/image-key.ts";
import { describeQcow2 } from "./describe.ts";
import { isEncryptedQcow2 } from "./encryption.ts";
import { COMPRESSION_TYPE, checkL1Table } from "./header.ts";
import { L2Entries } from "./l2-entries.ts";
import type { Qcow2Layout } from "./layout.ts";
import { looksPreallocated } from "./preallocation.ts";
import { SnapshotLookup } from "./snapshot-lookup.ts";
import type { SharedSnapshotTable } from "./snapshots/shared-snapshot-table.ts";
import { entryHostOffset } from "./table-entry.ts";

/** The L1 table that an image view maps through: the active one, or a snapshot's. */
interface L1Table {
  /** Host offset, bytes. */
  readonly offset: number;
  /** Entries that cover the disk; VM state lies above them. */
  readonly entries: number;
  /** The start of the table as it is on disk; the rest, or all of it, is read through the table cache. */
  readonly words: Int32Array | undefined;
}

/** What an image is read from. */
interface Qcow2Files {
  readonly storage: Storage;
  readonly dataStorage: Storage | undefined;
  /** Undefined: it is not encrypted, or its data is not read. */
  readonly cipher: DataCipher | undefined;
}

export class Qcow2Image implements FormatImage {
  readonly format = "qcow2";
  readonly storage: Storage;
  readonly dataStorage: Storage;
  virtualSize: number;
  readonly clusterSize: number;
  readonly backingFile: BackingReference | undefined;
  readonly encrypted: boolean;
  readonly cipher: DataCipher | undefined;
  readonly layout: Qcow2Layout;
  readonly tableCache: TableCache;

  readonly #resources: ThreadResources;
  readonly #compressed: CompressedClusters;
  #l1: L1Table;
  /** Guest bytes that one L2 table covers. */
  readonly #l2Coverage: number;
  readonly #entryBytes: number;
  readonly #sliceEntries: number;
  readonly #entries: L2Entries;
  readonly #snapshots: SnapshotLookup;

  #preallocated: boolean | undefined;

  /** @param view the virtual size and L1 table of a snapshot; default: the active ones */
  constructor(
    layout: Qcow2Layout,
    files: Qcow2Files,
    resources: ThreadResources,
    view?: { virtualSize: number; l1: L1Table; tableCache: TableCache },
  ) {
    this.layout = layout;
    this.storage = files.storage;
    this.dataStorage = files.dataStorage ?? files.storage;
    this.virtualSize = view?.virtualSize ?? layout.virtualSize;
    this.clusterSize = layout.clusterSize;
    this.backingFile = layout.backingFile;
    this.encrypted = isEncryptedQcow2(layout);
    this.cipher = files.cipher;
    this.tableCache =
      view?.tableCache ?? new TableCache(layout.tableCache, files.storage, resources.counters);
    this.#resources = resources;
    this.#compressed = {
      storage: files.storage,
      compression: layout.header.compression_type === COMPRESSION_TYPE.zstd ? "zstd" : "zlib",
      clusterSize: layout.clusterSize,
    };
    this.#l1 = view?.l1 ?? {
      offset: layout.header.l1_table_offset,
      entries: layout.l1Entries,
      words: layout.l1 && new Int32Array(layout.l1),
    };
    this.#l2Coverage = layout.clusterSize * layout.l2Entries;
    this.#entryBytes = layout.l2EntryBytes;
    this.#sliceEntries = layout.tableCache.sliceSize / layout.l2EntryBytes;
    this.#entries = new L2Entries(layout, files.storage.path, this.tableCache);
    this.#snapshots = new SnapshotLookup(layout, files.storage);
  }

  /** Follow what a writer makes of the snapshot table. */
  shareSnapshots(snapshots: SharedSnapshotTable): void {
    this.#snapshots.follow(snapshots);
  }

  /**
   * Take over a size and a place of the L1 table that a writer has changed; compressed clusters may have
   * come to places of others.
   *
   * @param l1Offset bytes
   * @param l1Size entries in the file
   */
  adopt(virtualSize: number, l1Offset: number, l1Size: number): void {
    this.virtualSize = virtualSize;
    this.#resources.clusterCache.forget();
    const entries = Math.min(Math.ceil(virtualSize / this.#l2Coverage), l1Size);
    this.#l1 = { offset: l1Offset, entries, words: this.#l1.words };
  }

  mayHaveHostHoles(): boolean {
    if (this.encrypted) return false;
    this.#preallocated ??= looksPreallocated(this.layout, this.storage);
    return this.#preallocated;
  }

  mapExtent(guestOffset: number, maxLength: number, out: Extent): void {
    const limit = Math.min(maxLength, this.virtualSize - guestOffset);
    const inTable = guestOffset % this.#l2Coverage;
    const l1Index = (guestOffset - inTable) / this.#l2Coverage;
    const l2Offset = this.#l2TableOffset(l1Index);
    if (l2Offset === 0) {
      this.#mapUnallocated(l1Index, inTable, limit, out);
      return;
    }
    const inCluster = inTable % this.clusterSize;
    const l2Index = (inTable - inCluster) / this.clusterSize;
    const sliceIndex = l2Index % this.#sliceEntries;
    const sliceOffset = l2Offset + (l2Index - sliceIndex) * this.#entryBytes;
    this.#entries.map(sliceOffset, sliceIndex, guestOffset, limit, out);
  }

  readCompressed(
    extent: Extent,
    target: NativeBuffer,
    start: number,
    skip: number,
    length: number,
  ): void {
    this.#resources.clusterCache.read(this.#compressed, extent, target, start, skip, length);
  }

  readSnapshots(): Iterable<SnapshotInfo> {
    return this.#snapshots.list(this.virtualSize);
  }

  hasSnapshot(number: number): boolean {
    return this.#snapshots.has(number);
  }

  openSnapshot(number: number): Qcow2Image {
    const snapshot = this.#snapshots.get(number, this.virtualSize);
    checkL1Table(this.storage.path, this.clusterSize, snapshot.l1TableOffset, snapshot.l1Entries);
    const l1 = { offset: snapshot.l1TableOffset, entries: snapshot.l1Entries, words: undefined };
    const view = { virtualSize: snapshot.virtualSize, l1, tableCache: this.tableCache };
    const { storage, dataStorage, cipher } = this;
    const files = { storage, dataStorage, cipher };
    return new Qcow2Image(this.layout, files, this.#resources, view);
  }

  describe(): FormatDescription {
    return describeQcow2(this.layout, this.storage, [...this.readSnapshots()]);
  }

  /** Host offset of an L2 table, 0 if there is none. */
  #l2TableOffset(l1Index: number): number {
    if (l1Index >= this.#l1.entries) return 0;
    let offset: number;
    const words = this.#l1.words;
    // A disk that has become larger has entries behind what is kept.
    if (words !== undefined && l1Index * 2 < words.length) {
      const hi = swap32(Atomics.load(words, l1Index * 2));
      const lo = swap32(Atomics.load(words, l1Index * 2 + 1));
      offset = entryHostOffset(hi, lo);
    } else {
      offset = this.#cachedL1Entry(l1Index);
    }
    if (offset % this.clusterSize !== 0) this.#throwL2Offset(offset, l1Index);
    return offset;
  }

  #cachedL1Entry(l1Index: number): number {
    const cache = this.tableCache;
    const entryOffset = this.#l1.offset + l1Index * 8;
    const inSlice = entryOffset % cache.sliceSize;
    let hi: number;
    let lo: number;
    do {
      cache.lookup(entryOffset - inSlice);
      hi = swap32(Atomics.load(cache.words, cache.base + inSlice / 4));
      lo = swap32(Atomics.load(cache.words, cache.base + inSlice / 4 + 1));
    } while (!cache.isValid());
    return entryHostOffset(hi, lo);
  }

  /** No L2 table: nothing is allocated up to the next one. */
  #mapUnallocated(l1Index: number, inTable: number, limit: number, out: Extent): void {
    let length = this.#l2Coverage - inTable;
    for (let next = l1Index + 1; length < limit; next++) {
      // A snapshot's disk may reach far beyond its table.
      if (next >= this.#l1.entries) length = limit;
      else if (this.#l2TableOffset(next) === 0) length += this.#l2Coverage;
      else break;
    }
    out.kind = EXTENT.unallocated;
    out.length = Math.min(length, limit);
    out.hostOffset = NO_OFFSET;
    out.compressedBytes = 0;
  }

  #throwL2Offset(offset: number, l1Index: number): never {
    const what = Number.isFinite(offset)
      ? `${hex(offset)} is not a multiple of the cluster size ${hex(this.clusterSize)}`
      : "is above the limit of 2^53 - 1";
    const at = this.#l1.offset + l1Index * 8;
    throw new CorruptionError(this.storage.path, `L2 table offset ${what} (L1 entry ${l1Index})`, {
      offset: at,
    });
  }
}
