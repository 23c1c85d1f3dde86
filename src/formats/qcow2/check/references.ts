/** All that refers to host clusters, counted: what the refcounts of an intact image say. */

import { FormatError, hex, UnsupportedError } from "../../../errors.ts";
import { DataRuns } from "../../data-runs.ts";
import { readLuksHeader } from "../../encryption/key-slots.ts";
import { readBitmapTables } from "../bitmap-directory.ts";
import { luksPlaceOf } from "../encryption.ts";
import { CRYPT_METHOD } from "../header.ts";
import { entryHostOffset } from "../table-entry.ts";
import { checkBitmapEntries } from "./bitmap-entries.ts";
import { type CheckedImage, hasDataFile } from "./check-layout.ts";
import { type FindingKind, type Findings, offsetText } from "./findings.ts";
import { L2TableWalk } from "./l2-table-walk.ts";
import { L2Tables } from "./l2-tables.ts";
import type { RefcountTable } from "./refcount-table.ts";
import { ReferenceCounts } from "./reference-counts.ts";
import {
  readSnapshotEntries,
  type SnapshotEntries,
  type SnapshotMode,
} from "./snapshot-entries.ts";
import { type ByteRange, overlay } from "./weighted-ranges.ts";

/** Bits 0 to 8 and 56 to 62 of an L1 entry. */
const L1E_RESERVED_HI = 0x7f00_0000;
const L1E_RESERVED_LO = 0x0000_01ff;
/** What an entry's lower half has of the offset. */
const OFFSET_LO = 0xffff_fe00;
/** Entries of L1 and bitmap tables, bytes. */
const ENTRY_SIZE = 8;
const SECTOR_SIZE = 512;
/** Bits of a bitmap table's entry that are 0; with an offset, bit 0 too. */
const BITMAP_RESERVED_HI = 0xff00_0000;
const BITMAP_RESERVED_LO = 0x0000_01fe;

/** Our limit of L2 tables in impossible places. */
const OVERLAPS_MAX = 2 ** 20;

/** How far past the end of the file references are remembered, clusters: no repair appends as many. */
const DANGLING_MAX = 2 ** 20;

/** Counted on the way: of the active tree only. */
export interface Statistics {
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
}

/** What holds host clusters, as messages call it. */
export type RegionName =
  | "the header"
  | "an L1 table"
  | "an L2 table"
  | "the snapshot table"
  | "the refcount table"
  | "a refcount block"
  | "the LUKS header"
  | "the bitmap directory"
  | "a bitmap's table"
  | "a bitmap's cluster"
  | "a compressed cluster"
  | "a data cluster";

/** Takes each region in the file that something refers to, in bytes; the same one maybe again and again. */
export type VisitRegion = (offset: number, size: number, what: RegionName) => void;

export class References {
  readonly image: CheckedImage;
  readonly counts: ReferenceCounts;
  readonly l2Tables: L2Tables;
  readonly statistics: Statistics = {
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
  readonly snapshots: SnapshotEntries;
  readonly #findings: Findings;
  /** L2 tables that lie over other metadata: few, in a file that is damaged. */
  readonly #overlapping = new Set<number>();
  #l1IsAlone = true;
  readonly #dangling = new Set<number>();
  readonly #visit: VisitRegion | undefined;
  /** Every region in the file ends before it. For QEMU, a file consists of whole sectors. */
  readonly #regionsEnd: number;

  /**
   * Count everything but refcount blocks, which whoever reads the refcount table adds.
   *
   * @param table of the same image
   * @param visit told what each region is; undefined: nobody asks
   * @throws {FormatError | UnsupportedError | StorageError} something cannot be followed at all
   */
  constructor(table: RefcountTable, findings: Findings, mode: SnapshotMode, visit?: VisitRegion) {
    const { image } = table;
    const { storage, layout, length } = image;
    this.image = image;
    this.#findings = findings;
    this.#visit = visit;
    this.#regionsEnd = Math.ceil(length / SECTOR_SIZE) * SECTOR_SIZE + layout.clusterSize;
    this.counts = new ReferenceCounts(storage.path, Math.ceil(length / layout.clusterSize));
    this.l2Tables = new L2Tables(storage.path, layout.clusterSize);
    this.addRegion(0, layout.clusterSize, 1, "the header");
    this.snapshots = readSnapshotEntries(image, findings, mode);
    this.#walkL1Tables();
    this.#addRegions();
    this.#walkBitmaps();
    this.#findOverlaps(table);
    new L2TableWalk(this, findings).run();
  }

  /** Whether tables lie over no other metadata, so that writing to them damages none. */
  areL1EntriesAlone(): boolean {
    return this.#l1IsAlone;
  }

  /** As `areL1EntriesAlone`, of one L2 table. */
  areL2EntriesAlone(offset: number): boolean {
    return offset % this.image.layout.clusterSize === 0 && !this.#overlapping.has(offset);
  }

  /** Whether a region lies in the file: its last cluster may be cut short, even to nothing. */
  isInFile(offset: number, size: number): boolean {
    return offset + size < this.#regionsEnd;
  }

  /**
   * Count `references` to each cluster that `size` bytes at `offset` touch.
   *
   * @param kind what it is called if it is not in the file
   */
  addRegion(
    offset: number,
    size: number,
    references: number,
    what: RegionName,
    kind: FindingKind = "reference",
  ): void {
    if (size <= 0) return;
    if (!this.isInFile(offset, size)) {
      this.#findings.add(
        kind,
        references,
        () => `${what} at ${offsetText(offset)} reaches past the end of the file`,
      );
      this.#addDangling(offset, size);
      return;
    }
    this.#visit?.(offset, size, what);
    const { clusterSize } = this.image.layout;
    const last = Math.floor((offset + size - 1) / clusterSize);
    for (let cluster = Math.floor(offset / clusterSize); cluster <= last; cluster++) {
      this.counts.add(cluster, references);
    }
  }

  /** Whether something refers to a cluster although it is past the end of the file. */
  isDangling(cluster: number): boolean {
    return this.#dangling.has(cluster);
  }

  /** Remember what would come to life if the file grew by a little: as far as its last cluster. */
  #addDangling(offset: number, size: number): void {
    const { clusterSize } = this.image.layout;
    const end = Math.ceil(this.image.length / clusterSize);
    const last = Math.floor((offset + size - 1) / clusterSize);
    if (last > end + DANGLING_MAX) return;
    const first = Math.max(end, Math.floor(offset / clusterSize));
    for (let cluster = first; cluster <= last; cluster++) this.#dangling.add(cluster);
  }

  /** Count one reference to each cluster of each table: many large ones may lie over each other. */
  #addTables(tables: readonly ByteRange[], what: RegionName): void {
    const { clusterSize } = this.image.layout;
    const clusters: ByteRange[] = [];
    for (const { start, end, active } of tables) {
      if (!this.isInFile(start, end - start)) {
        this.addRegion(start, end - start, 1, what);
        continue;
      }
      const first = Math.floor(start / clusterSize);
      clusters.push({ start: first, end: Math.ceil(end / clusterSize), active });
    }
    for (const { start, end, total } of overlay(clusters)) {
      this.#visit?.(start * clusterSize, (end - start) * clusterSize, what);
      for (let cluster = start; cluster < end; cluster++) this.counts.add(cluster, total);
    }
  }

  #walkL1Tables(): void {
    const { storage, layout, length } = this.image;
    const { header } = layout;
    const tables = [byteRange(header.l1_table_offset, header.l1_size, "active")];
    if (hasDataFile(layout) && header.nb_snapshots > 0) {
      this.#findings.add("reference", 1, () => "snapshots in an image with a data file");
    }
    for (const { l1TableOffset, l1Entries } of this.snapshots.tables()) {
      tables.push(byteRange(l1TableOffset, l1Entries, "inactive"));
    }
    this.#addTables(tables, "an L1 table");
    const runs = new DataRuns(storage, length);
    for (const { start, end, active, total } of overlay(tables)) {
      runs.forEachEntry(start, end, (hi, lo, at) => this.#addL2Table(hi, lo, at, active, total));
    }
  }

  #addL2Table(hi: number, lo: number, at: number, active: number, total: number): void {
    if ((hi & L1E_RESERVED_HI) !== 0 || (lo & L1E_RESERVED_LO) !== 0) {
      this.#findings.add(
        "reference",
        total,
        () => `the L1 entry at ${hex(at)} has reserved bits set`,
      );
    }
    const { layout, length } = this.image;
    const offset = entryHostOffset(hi, lo);
    this.addRegion(offset, layout.clusterSize, total, "an L2 table");
    if ((lo & OFFSET_LO & (layout.clusterSize - 1)) !== 0) {
      this.#findings.add(
        "reference",
        total,
        () => `the L1 entry at ${hex(at)}: L2 table offset ${hex(offset)} is not cluster aligned`,
      );
    }
    if (offset < length) this.l2Tables.add(offset, active, total);
  }

  #addRegions(): void {
    const { header, clusterSize } = this.image.layout;
    this.addRegion(header.snapshots_offset, this.snapshots.size, 1, "the snapshot table");
    this.addRegion(
      header.refcount_table_offset,
      header.refcount_table_clusters * clusterSize,
      1,
      "the refcount table",
      "structure",
    );
    this.#addLuksHeader();
  }

  #addLuksHeader(): void {
    const { layout, storage } = this.image;
    if (layout.header.crypt_method !== CRYPT_METHOD.luks) return;
    const place = luksPlaceOf(layout, storage.path);
    // What the extension leaves out of it would be leaked: a repair would erase key material.
    readLuksHeader(storage, place);
    this.addRegion(place.offset, place.length, 1, "the LUKS header");
  }

  #walkBitmaps(): void {
    const { storage, layout, length } = this.image;
    const { bitmaps } = layout.extensions;
    if (bitmaps === undefined) return;
    checkBitmapEntries(bitmaps, storage, layout);
    this.addRegion(bitmaps.directoryOffset, bitmaps.directorySize, 1, "the bitmap directory");
    const tables = readBitmapTables(bitmaps, storage, layout.clusterSize).map(
      ({ offset, entries }) => byteRange(offset, entries, "inactive"),
    );
    this.#addTables(tables, "a bitmap's table");
    const runs = new DataRuns(storage, length);
    for (const { start, end, total } of overlay(tables)) {
      runs.forEachEntry(start, end, (hi, lo, at) => this.#addBitmapCluster(hi, lo, at, total));
    }
  }

  /** While data clusters are not counted yet, all that counts is metadata. */
  #findOverlaps(table: RefcountTable): void {
    const { header, clusterSize } = this.image.layout;
    for (const offset of this.l2Tables.inOrder()) {
      const references = this.counts.get(Math.floor(offset / clusterSize));
      if (references !== this.l2Tables.totalAt(offset)) this.#addOverlapping(offset);
    }
    const l1Start = header.l1_table_offset;
    const l1End = l1Start + Math.ceil((header.l1_size * ENTRY_SIZE) / clusterSize) * clusterSize;
    for (let offset = l1Start; offset < l1End; offset += clusterSize) {
      if (this.counts.get(offset / clusterSize) !== 1) this.#l1IsAlone = false;
    }
    for (let block = 0; block < table.blocks; block++) {
      const offset = table.blockOffset(block);
      if (offset === 0 || offset >= this.image.length) continue;
      const start = offset - (offset % clusterSize);
      if (start >= l1Start && start < l1End) this.#l1IsAlone = false;
      if (this.l2Tables.totalAt(start) > 0) this.#addOverlapping(start);
    }
  }

  #addOverlapping(offset: number): void {
    if (this.#overlapping.size >= OVERLAPS_MAX) {
      const reason = `more than ${OVERLAPS_MAX} L2 tables lie over other metadata: too damaged to be checked`;
      throw new UnsupportedError(this.image.storage.path, reason);
    }
    this.#overlapping.add(offset);
  }

  #addBitmapCluster(hi: number, lo: number, at: number, total: number): void {
    const { clusterSize } = this.image.layout;
    const offset = entryHostOffset(hi, lo);
    const damaged =
      (hi & BITMAP_RESERVED_HI) !== 0 ||
      (lo & BITMAP_RESERVED_LO) !== 0 ||
      (offset !== 0 && (lo & (clusterSize - 1)) !== 0);
    if (damaged) {
      // As for QEMU, which does not open such an image.
      const reason = `the bitmap table entry at ${hex(at)} is damaged`;
      throw new FormatError(this.image.storage.path, reason, { offset: at });
    }
    if (offset !== 0) {
      this.addRegion(offset, clusterSize, total, "a bitmap's cluster");
    }
  }
}

function byteRange(offset: number, entries: number, state: "active" | "inactive"): ByteRange {
  return { start: offset, end: offset + entries * ENTRY_SIZE, active: state === "active" };
}
