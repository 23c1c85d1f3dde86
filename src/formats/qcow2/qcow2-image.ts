/** An open qcow2 image: the mapping of guest offsets through L1 and L2 tables. */

import assert from "node:assert";
import { swap32 } from "../../binary/words.ts";
import { CorruptionError, hex, TsimgfsError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { TableCache } from "../../threads/table-cache.ts";
import type { CompressedClusters } from "../compression/cluster-cache.ts";
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
import type { DataCipher } from "../encryption/image-key.ts";
import { describeQcow2 } from "./describe.ts";
import { isEncryptedQcow2 } from "./encryption.ts";
import { COMPRESSION_TYPE, checkL1Table } from "./header.ts";
import type { Qcow2Layout } from "./layout.ts";
import { looksPreallocated } from "./preallocation.ts";
import {
  type Qcow2Snapshot,
  readSnapshotTable,
  type SnapshotTableLocation,
} from "./snapshot-table.ts";
import type { SharedSnapshotTable } from "./snapshots/shared-snapshot-table.ts";
import {
  COPIED_HI,
  compressedHostOffset,
  compressedLength,
  entryHostOffset,
  L2E_COMPRESSED_HI,
  L2E_ZERO_LO,
  sectorCountShift,
} from "./table-entry.ts";

/** Sub-clusters of a cluster with extended L2 entries. */
const SUBCLUSTERS = 32;

/** Why an L2 entry cannot be right; 0 if it can. */
const FAULT = {
  none: 0,
  unaligned: 1,
  zeroInV2: 2,
  notIdentity: 3,
  compressedWithDataFile: 4,
  subclusterBitmap: 5,
  tooHigh: 6,
} as const;

const FAULT_REASONS: Readonly<Record<number, string>> = {
  [FAULT.unaligned]: "the host offset is not a multiple of the cluster size",
  [FAULT.zeroInV2]: "a zero cluster in a version 2 image",
  [FAULT.notIdentity]: "the host offset differs from the guest offset in an external data file",
  [FAULT.compressedWithDataFile]: "a compressed cluster in an image with an external data file",
  [FAULT.subclusterBitmap]: "the sub-cluster bitmap contradicts itself or the host offset",
  [FAULT.tooHigh]: "the host offset is above the limit of 2^53 - 1",
};

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
  readonly #subclusterSize: number;
  readonly #compressedShift: number;
  readonly #version: number;
  readonly #hasDataFile: boolean;
  readonly #extendedL2: boolean;

  // What `#classify` found; fields rather than results, so that mapping makes no garbage.
  #kind: ExtentKind = EXTENT.unallocated;
  #hostOffset: number = NO_OFFSET;
  #compressedBytes = 0;
  #fault: number = FAULT.none;
  #faultEntry = 0;
  #preallocated: boolean | undefined;
  /** Of an image that is written to: its snapshots come and go. */
  #snapshots: SharedSnapshotTable | undefined;

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
    this.#subclusterSize = layout.clusterSize / SUBCLUSTERS;
    this.#compressedShift = sectorCountShift(layout.clusterBits);
    this.#version = layout.header.version;
    this.#hasDataFile = layout.dataFile !== undefined;
    this.#extendedL2 = layout.extendedL2;
  }

  /** Follow what a writer makes of the snapshot table. */
  shareSnapshots(snapshots: SharedSnapshotTable): void {
    this.#snapshots = snapshots;
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
    const cache = this.tableCache;
    do {
      cache.lookup(sliceOffset);
      this.#fault = FAULT.none;
      if (this.#extendedL2) {
        this.#mapSubclusters(cache.base, sliceIndex, guestOffset, limit, out);
      } else {
        this.#mapClusters(cache.base, sliceIndex, guestOffset, limit, out);
      }
    } while (!cache.isValid());
    if (this.#fault !== FAULT.none) this.#throwFault(sliceOffset);
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

  *readSnapshots(): Generator<SnapshotInfo> {
    let index = 0;
    for (const snapshot of readSnapshotTable(this.#snapshotTable(), this.storage)) {
      const number = this.#snapshots?.numberAt(index) ?? index;
      index++;
      yield { ...snapshot, number };
    }
  }

  hasSnapshot(number: number): boolean {
    return this.#snapshotIndex(number) >= 0;
  }

  openSnapshot(number: number): Qcow2Image {
    const snapshot = this.#snapshotAt(number);
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

  /** Where the table is by now. */
  #snapshotTable(): SnapshotTableLocation {
    const shared = this.#snapshots;
    if (shared === undefined) return this.layout;
    const header = { nb_snapshots: shared.count, snapshots_offset: shared.offset };
    return { header, virtualSize: this.virtualSize };
  }

  /** The place of a snapshot in the table, -1 if there is none. */
  #snapshotIndex(number: number): number {
    if (this.#snapshots !== undefined) return this.#snapshots.indexOf(number);
    return number < this.layout.header.nb_snapshots ? number : -1;
  }

  #snapshotAt(number: number): Qcow2Snapshot {
    const index = this.#snapshotIndex(number);
    const offset =
      this.#snapshots?.entryOffset(index) ??
      new Float64Array(this.layout.snapshotTable.offsets)[index];
    if (index < 0 || offset === undefined) {
      throw new TsimgfsError("ESTALE", this.storage.path, "the snapshot was deleted");
    }
    const [snapshot] = readSnapshotTable(this.#snapshotTable(), this.storage, { index, offset });
    assert(snapshot !== undefined, `snapshot ${index}`);
    return snapshot;
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

  /** Classify an entry of the slice at `base`, standard L2 format; the sub-cluster bitmap apart. */
  #classify(hi: number, lo: number, clusterOffset: number): void {
    this.#compressedBytes = 0;
    this.#hostOffset = NO_OFFSET;
    if ((hi & L2E_COMPRESSED_HI) !== 0) {
      this.#classifyCompressed(hi, lo);
      return;
    }
    const offset = entryHostOffset(hi, lo);
    if (offset !== 0 || (this.#hasDataFile && (hi & COPIED_HI) !== 0)) {
      this.#kind = EXTENT.data;
      this.#hostOffset = offset;
      this.#checkHostOffset(offset, clusterOffset);
    } else {
      this.#kind = EXTENT.unallocated;
    }
    if ((lo & L2E_ZERO_LO) !== 0 && !this.#extendedL2) {
      this.#kind = EXTENT.zero;
      if (this.#version < 3) this.#fault = FAULT.zeroInV2;
      if (offset === 0) this.#hostOffset = NO_OFFSET;
    }
  }

  #checkHostOffset(offset: number, clusterOffset: number): void {
    if (offset === Number.POSITIVE_INFINITY) this.#fault = FAULT.tooHigh;
    else if (offset % this.clusterSize !== 0) this.#fault = FAULT.unaligned;
    else if (this.#hasDataFile && offset !== clusterOffset) this.#fault = FAULT.notIdentity;
  }

  #classifyCompressed(hi: number, lo: number): void {
    this.#kind = EXTENT.compressed;
    if (this.#hasDataFile) this.#fault = FAULT.compressedWithDataFile;
    const offset = compressedHostOffset(hi, lo, this.#compressedShift);
    if (offset === Number.POSITIVE_INFINITY) {
      this.#fault = FAULT.tooHigh;
      return;
    }
    this.#hostOffset = offset;
    this.#compressedBytes = compressedLength(hi, this.#compressedShift, offset);
  }

  /** Classify the entry at word `at`; a fault is noted with the entry's index in the slice. */
  #classifyEntry(at: number, index: number, clusterOffset: number): void {
    const words = this.tableCache.words;
    const hi = swap32(Atomics.load(words, at));
    const lo = swap32(Atomics.load(words, at + 1));
    this.#classify(hi, lo, clusterOffset);
    if (this.#fault !== FAULT.none) this.#faultEntry = index;
  }

  #mapClusters(
    base: number,
    sliceIndex: number,
    guestOffset: number,
    limit: number,
    out: Extent,
  ): void {
    const clusterSize = this.clusterSize;
    const inCluster = guestOffset % clusterSize;
    let clusterOffset = guestOffset - inCluster;
    this.#classifyEntry(base + sliceIndex * 2, sliceIndex, clusterOffset);
    const kind = this.#kind;
    const host = this.#hostOffset;
    out.kind = kind;
    out.hostOffset = host;
    out.compressedBytes = this.#compressedBytes;
    let length = clusterSize - inCluster;
    if (this.#fault !== FAULT.none || kind === EXTENT.compressed) {
      out.length = Math.min(length, limit);
      return;
    }
    let expected = host;
    for (let index = sliceIndex + 1; length < limit && index < this.#sliceEntries; index++) {
      clusterOffset += clusterSize;
      if (host !== NO_OFFSET) expected += clusterSize;
      this.#classifyEntry(base + index * 2, index, clusterOffset);
      if (this.#fault !== FAULT.none || this.#kind !== kind || this.#hostOffset !== expected) {
        // The fault is of a later entry: whoever reads that far will meet it.
        this.#fault = FAULT.none;
        break;
      }
      length += clusterSize;
    }
    out.length = Math.min(length, limit);
    if (host !== NO_OFFSET) out.hostOffset = host + inCluster;
  }

  /** As `#mapClusters`, one cluster at a time, by sub-clusters. Source: "Extended L2 Entries". */
  #mapSubclusters(
    base: number,
    sliceIndex: number,
    guestOffset: number,
    limit: number,
    out: Extent,
  ): void {
    const clusterSize = this.clusterSize;
    const inCluster = guestOffset % clusterSize;
    const at = base + sliceIndex * 4;
    this.#classifyEntry(at, sliceIndex, guestOffset - inCluster);
    out.hostOffset = this.#hostOffset;
    out.compressedBytes = this.#compressedBytes;
    if (this.#fault !== FAULT.none || this.#kind === EXTENT.compressed) {
      out.kind = this.#kind;
      out.length = Math.min(clusterSize - inCluster, limit);
      return;
    }
    const zeroBits = swap32(Atomics.load(this.tableCache.words, at + 2));
    const allocatedBits = swap32(Atomics.load(this.tableCache.words, at + 3));
    const hasCluster = this.#kind === EXTENT.data;
    if ((zeroBits & allocatedBits) !== 0 || (!hasCluster && allocatedBits !== 0)) {
      this.#fault = FAULT.subclusterBitmap;
      this.#faultEntry = sliceIndex;
    }
    const first = Math.floor(inCluster / this.#subclusterSize);
    const kind = subclusterKind(zeroBits, allocatedBits, first);
    let end = first + 1;
    while (end < SUBCLUSTERS && subclusterKind(zeroBits, allocatedBits, end) === kind) end++;
    out.kind = kind;
    out.length = Math.min(end * this.#subclusterSize - inCluster, limit);
    if (hasCluster) out.hostOffset += inCluster;
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

  #throwFault(sliceOffset: number): never {
    const offset = sliceOffset + this.#faultEntry * this.#entryBytes;
    const value =
      Number.isFinite(this.#hostOffset) && this.#hostOffset !== NO_OFFSET
        ? `, host offset ${hex(this.#hostOffset)}`
        : "";
    const reason = `L2 entry at ${hex(offset)}${value}: ${FAULT_REASONS[this.#fault]}`;
    throw new CorruptionError(this.storage.path, reason, { offset });
  }
}

function subclusterKind(zeroBits: number, allocatedBits: number, index: number): ExtentKind {
  if (((zeroBits >>> index) & 1) !== 0) return EXTENT.zero;
  return ((allocatedBits >>> index) & 1) !== 0 ? EXTENT.data : EXTENT.unallocated;
}
