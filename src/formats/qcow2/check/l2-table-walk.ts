/** The entries of L2 tables: what they refer to, and what cannot be right about them. */

import { joinHalves, SAFE_HI_MAX } from "../../../binary/words.ts";
import { hex } from "../../../errors.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { DataRuns } from "../../data-runs.ts";
import {
  COPIED_HI,
  compressedLength,
  entryHostOffset,
  L2E_COMPRESSED_HI,
  L2E_ZERO_LO,
  sectorCountShift,
} from "../table-entry.ts";
import { type CheckLayout, hasDataFile } from "./check-layout.ts";
import { type Findings, offsetText } from "./findings.ts";
import type { References } from "./references.ts";

/** Bits 1 to 8 and 56 to 61 of a standard L2 entry. */
const L2E_RESERVED_HI = 0x3f00_0000;
const L2E_RESERVED_LO = 0x0000_01fe;
/** What an entry's lower half has of the offset. */
const OFFSET_LO = 0xffff_fe00;

/** What an L2 entry is. A plain zero cluster refers to nothing, and counts as unallocated here. */
export const CLUSTER = { unallocated: 0, allocated: 1, compressed: 2 } as const;
export type ClusterKind = (typeof CLUSTER)[keyof typeof CLUSTER];

/** How entries are read: the part of the layout that decides it, worked out. */
export class L2EntryRules {
  readonly entryBytes: number;
  readonly clusterSize: number;
  readonly dataFile: boolean;
  readonly extended: boolean;
  readonly #compressedShift: number;

  constructor(layout: CheckLayout) {
    this.entryBytes = layout.l2EntryBytes;
    this.clusterSize = layout.clusterSize;
    this.dataFile = hasDataFile(layout);
    this.extended = layout.extendedL2;
    this.#compressedShift = sectorCountShift(layout.clusterBits);
  }

  kindOf(hi: number, lo: number): ClusterKind {
    if ((hi & L2E_COMPRESSED_HI) !== 0) return CLUSTER.compressed;
    if (entryHostOffset(hi, lo) !== 0) return CLUSTER.allocated;
    const isZero = !this.extended && (lo & L2E_ZERO_LO) !== 0;
    // In a data file, the first cluster is at offset 0.
    const isFirst = this.dataFile && !isZero && (hi & COPIED_HI) !== 0;
    return isFirst ? CLUSTER.allocated : CLUSTER.unallocated;
  }

  /** Whether an allocated cluster's offset cannot be right. */
  isUnaligned(lo: number): boolean {
    return (lo & OFFSET_LO & (this.clusterSize - 1)) !== 0;
  }

  /** Whether an allocated cluster is read from the host at all. */
  hasData(lo: number, allocatedSubclusters: number): boolean {
    return this.extended ? allocatedSubclusters !== 0 : (lo & L2E_ZERO_LO) === 0;
  }

  /** Where a compressed cluster's stream starts; Infinity as for other host offsets. */
  compressedOffset(hi: number, lo: number): number {
    // Unlike a reader, a check wants to see the bits above 55, which small clusters have room for.
    const offsetHi = hi % 2 ** (this.#compressedShift - 32);
    return offsetHi > SAFE_HI_MAX ? Number.POSITIVE_INFINITY : joinHalves(offsetHi, lo);
  }

  /** How long the stream at `offset` is at the most, bytes. */
  compressedLength(hi: number, offset: number): number {
    return compressedLength(hi, this.#compressedShift, offset);
  }
}

export class L2TableWalk {
  readonly #references: References;
  readonly #findings: Findings;
  readonly #rules: L2EntryRules;
  readonly #table: NativeBuffer;
  // Of the table that is being read.
  #offset = 0;
  #active = 0;
  #total = 0;
  /** Where the next cluster would be if nothing were fragmented; -1: there is no cluster before it. */
  #contiguous = -1;

  constructor(references: References, findings: Findings) {
    const { layout } = references.image;
    this.#references = references;
    this.#findings = findings;
    this.#rules = new L2EntryRules(layout);
    this.#table = NativeBuffer.allocate(layout.clusterSize);
  }

  run(): void {
    const { l2Tables, image } = this.#references;
    const { storage, layout, length } = image;
    const runs = new DataRuns(storage, length);
    for (const offset of l2Tables.inOrder()) {
      const end = offset + layout.clusterSize;
      if (runs.nextData(offset, end) === end) continue;
      storage.readAt(this.#table, 0, layout.clusterSize, offset);
      this.#offset = offset;
      this.#active = l2Tables.activeAt(offset);
      this.#total = l2Tables.totalAt(offset);
      this.#contiguous = -1;
      this.#visitTable();
    }
  }

  #visitTable(): void {
    const { view } = this.#table;
    const { entryBytes, extended } = this.#rules;
    for (let at = 0; at < view.byteLength; at += entryBytes) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      const zeroSubclusters = extended ? view.getUint32(at + 8) : 0;
      const allocatedSubclusters = extended ? view.getUint32(at + 12) : 0;
      if (hi === 0 && lo === 0 && allocatedSubclusters === 0) continue;
      if ((hi & L2E_COMPRESSED_HI) !== 0) {
        this.#visitCompressed(at, hi, lo, zeroSubclusters !== 0 || allocatedSubclusters !== 0);
      } else {
        this.#visitStandard(at, hi, lo, zeroSubclusters, allocatedSubclusters);
      }
    }
  }

  #visitCompressed(at: number, hi: number, lo: number, hasBitmap: boolean): void {
    if ((hi & COPIED_HI) !== 0) this.#damaged(at, "a compressed cluster with the COPIED flag");
    if (this.#rules.dataFile) {
      this.#damaged(at, "a compressed cluster in an image with a data file");
      return;
    }
    if (hasBitmap) {
      this.#damaged(at, "a compressed cluster with sub-clusters");
      return;
    }
    const offset = this.#rules.compressedOffset(hi, lo);
    const length = this.#rules.compressedLength(hi, offset);
    this.#references.addRegion(offset, length, this.#total, "a compressed cluster");
    const { statistics } = this.#references;
    statistics.allocatedClusters += this.#active;
    statistics.compressedClusters += this.#active;
    // As QEMU counts: each one starts within a sector, and needs a read of its own.
    statistics.fragmentedClusters += this.#active;
  }

  #visitStandard(
    at: number,
    hi: number,
    lo: number,
    zeroSubclusters: number,
    allocatedSubclusters: number,
  ): void {
    const rules = this.#rules;
    if ((hi & L2E_RESERVED_HI) !== 0 || (lo & L2E_RESERVED_LO) !== 0) {
      this.#damaged(at, "reserved bits are set");
    }
    if (rules.kindOf(hi, lo) === CLUSTER.unallocated) {
      if (allocatedSubclusters !== 0) {
        this.#damaged(at, "sub-clusters of a cluster that is not allocated");
      }
      return;
    }
    if ((zeroSubclusters & allocatedSubclusters) !== 0) {
      this.#damaged(at, "sub-clusters are allocated and zero at once");
    }
    const offset = entryHostOffset(hi, lo);
    if (rules.isUnaligned(lo)) {
      const kind = rules.hasData(lo, allocatedSubclusters) ? "reference" : "preallocated";
      this.#findings.add(
        kind,
        this.#total,
        () => `${this.#place(at)}: the cluster at ${offsetText(offset)} is not aligned`,
      );
    }
    const { statistics } = this.#references;
    statistics.allocatedClusters += this.#active;
    // Infinity: all that is known of an offset is that it is above 2^53.
    const follows = offset === this.#contiguous && offset !== Number.POSITIVE_INFINITY;
    if (this.#contiguous >= 0 && !follows) {
      statistics.fragmentedClusters += this.#active;
    }
    this.#contiguous = offset + rules.clusterSize;
    if (!rules.dataFile) {
      this.#references.addRegion(offset, rules.clusterSize, this.#total, "a data cluster");
    }
  }

  #damaged(at: number, reason: string): void {
    this.#findings.add("reference", this.#total, () => `${this.#place(at)}: ${reason}`);
  }

  #place(at: number): string {
    return `the L2 entry at ${hex(this.#offset + at)}`;
  }
}
