/** The entries of L2 tables: what they say of clusters and sub-clusters. Source: "Cluster mapping". */

import { swap32 } from "../../binary/words.ts";
import { CorruptionError, hex } from "../../errors.ts";
import type { TableCache } from "../../threads/table-cache.ts";
import { EXTENT, type Extent, type ExtentKind, NO_OFFSET } from "../driver.ts";
import type { Qcow2Layout } from "./layout.ts";
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

export class L2Entries {
  readonly #path: string;
  readonly #cache: TableCache;
  readonly #clusterSize: number;
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

  /** @param path of the image, for errors */
  constructor(layout: Qcow2Layout, path: string, cache: TableCache) {
    this.#path = path;
    this.#cache = cache;
    this.#clusterSize = layout.clusterSize;
    this.#entryBytes = layout.l2EntryBytes;
    this.#sliceEntries = layout.tableCache.sliceSize / layout.l2EntryBytes;
    this.#subclusterSize = layout.clusterSize / SUBCLUSTERS;
    this.#compressedShift = sectorCountShift(layout.clusterBits);
    this.#version = layout.header.version;
    this.#hasDataFile = layout.dataFile !== undefined;
    this.#extendedL2 = layout.extendedL2;
  }

  /**
   * The extent at `guestOffset`, as FormatImage.mapExtent, as far as the slice reaches.
   *
   * @param sliceOffset host offset of a slice of an L2 table, bytes
   * @param index of the first entry, in the slice
   * @param limit bytes: the extent gets no longer
   * @throws {CorruptionError} the first entry cannot be right
   */
  map(sliceOffset: number, index: number, guestOffset: number, limit: number, out: Extent): void {
    const cache = this.#cache;
    do {
      cache.lookup(sliceOffset);
      this.#fault = FAULT.none;
      if (this.#extendedL2) this.#mapSubclusters(cache.base, index, guestOffset, limit, out);
      else this.#mapClusters(cache.base, index, guestOffset, limit, out);
    } while (!cache.isValid());
    if (this.#fault !== FAULT.none) this.#throwFault(sliceOffset);
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
    else if (offset % this.#clusterSize !== 0) this.#fault = FAULT.unaligned;
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
    const words = this.#cache.words;
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
    const clusterSize = this.#clusterSize;
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
    const clusterSize = this.#clusterSize;
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
    const zeroBits = swap32(Atomics.load(this.#cache.words, at + 2));
    const allocatedBits = swap32(Atomics.load(this.#cache.words, at + 3));
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

  #throwFault(sliceOffset: number): never {
    const offset = sliceOffset + this.#faultEntry * this.#entryBytes;
    const value =
      Number.isFinite(this.#hostOffset) && this.#hostOffset !== NO_OFFSET
        ? `, host offset ${hex(this.#hostOffset)}`
        : "";
    const reason = `L2 entry at ${hex(offset)}${value}: ${FAULT_REASONS[this.#fault]}`;
    throw new CorruptionError(this.#path, reason, { offset });
  }
}

function subclusterKind(zeroBits: number, allocatedBits: number, index: number): ExtentKind {
  if (((zeroBits >>> index) & 1) !== 0) return EXTENT.zero;
  return ((allocatedBits >>> index) & 1) !== 0 ? EXTENT.data : EXTENT.unallocated;
}
