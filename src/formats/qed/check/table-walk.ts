/**
 * All tables of a QED image, each once: what their entries refer to, in QEMU's order. An entry is
 *
 *     invalid   not the offset of a place within the file's whole clusters, behind the header
 *     shared    of a place that something else refers to as well: whose it is, nobody can tell
 *
 * A table that shares clusters is not looked into: its entries may be another one's data.
 */

import { joinHalves, TWO_TO_32 } from "../../../binary/words.ts";
import { hex } from "../../../errors.ts";
import type { Storage } from "../../../storage/storage.ts";
import { DataRuns } from "../../data-runs.ts";
import type { LimitedReport } from "../../limited-report.ts";
import { type Header, tableEntries, wholeClusters } from "../header.ts";
import { UsedClusters } from "./used-clusters.ts";

/** An L2 entry of a zero cluster. */
const ENTRY_ZERO = 1;

/** A file with an image in it, as it is now. */
export interface CheckedQed {
  readonly storage: Storage;
  readonly header: Header;
  /** Bytes of the file. */
  readonly length: number;
}

export interface WalkOptions {
  /** Takes what is found. */
  readonly report: LimitedReport;
  /** Takes the host offset of each invalid entry; that entry may be written to. */
  readonly onInvalid: (entryOffset: number) => void;
  /** Takes the host offset and the bytes of each table. */
  readonly onTable?: (offset: number, bytes: number) => void;
}

export class TableWalk {
  readonly used = new UsedClusters();
  /** Entries that are not the offset of a place where their cluster or table can be. */
  invalid = 0;
  /** References to clusters that are referred to by others, too. */
  shared = 0;
  allocatedClusters = 0;
  /** Clusters that do not follow the one of the entry before. */
  fragmentedClusters = 0;

  readonly #clusterSize: number;
  readonly #tableBytes: number;
  readonly #headerBytes: number;
  readonly #fileEnd: number;
  readonly #l1Table: number;
  readonly #options: WalkOptions;
  readonly #l1Runs: DataRuns;
  readonly #l2Runs: DataRuns;
  /** The entry before, as halves; 0: there is none in this table. */
  #previousHi = 0;
  #previousLo = 0;

  constructor({ storage, header, length }: CheckedQed, options: WalkOptions) {
    this.#clusterSize = header.cluster_size;
    this.#tableBytes = tableEntries(header) * 8;
    this.#headerBytes = header.header_size * header.cluster_size;
    this.#fileEnd = wholeClusters(length, header.cluster_size);
    this.#options = options;
    this.#l1Runs = new DataRuns(storage, length, "le");
    this.#l2Runs = new DataRuns(storage, length, "le");
    this.#l1Table = header.l1_table_offset;
  }

  /**
   * Walk through all tables, once.
   *
   * @throws {StorageError} one cannot be read
   */
  run(): void {
    const table = this.#l1Table;
    this.#markTable(table);
    this.#l1Runs.forEachEntry(table, table + this.#tableBytes, (hi, lo, at) => {
      const offset = joinHalves(hi, lo);
      if (!this.#isPlace(offset, this.#tableBytes)) {
        this.#noteInvalid("L1", "an L2 table", at, hi, lo);
        return;
      }
      const shared = this.#markTable(offset);
      if (shared === 0) {
        this.#walkL2(offset);
        return;
      }
      this.shared += shared;
      this.#options.report.add(() => {
        return `L1 entry at ${hex(at)}: ${shared} clusters of the L2 table at ${hex(offset)} are in use already`;
      });
    });
  }

  #walkL2(table: number): void {
    this.#previousHi = 0;
    this.#previousLo = 0;
    this.#l2Runs.forEachEntry(table, table + this.#tableBytes, (hi, lo, at) => {
      if (hi === 0 && lo === ENTRY_ZERO) return;
      this.#countPlace(hi, lo);
      const offset = joinHalves(hi, lo);
      if (!this.#isPlace(offset, this.#clusterSize)) {
        this.#noteInvalid("L2", "a cluster", at, hi, lo);
      } else if (!this.used.mark(offset / this.#clusterSize)) {
        this.shared++;
        this.#options.report.add(() => {
          return `L2 entry at ${hex(at)}: the cluster at ${hex(offset)} is in use already`;
        });
      }
    });
  }

  /** As QEMU: places count as allocated and fragmented even where no cluster can be. */
  #countPlace(hi: number, lo: number): void {
    this.allocatedClusters++;
    if (this.#previousHi !== 0 || this.#previousLo !== 0) {
      // In halves: whatever the entries are, above 2^53 too.
      const sum = this.#previousLo + this.#clusterSize;
      const carry = sum >= TWO_TO_32 ? 1 : 0;
      const follows = lo === sum % TWO_TO_32 && hi === (this.#previousHi + carry) % TWO_TO_32;
      if (!follows) this.fragmentedClusters++;
    }
    this.#previousHi = hi;
    this.#previousLo = lo;
  }

  /** Whether something of `bytes` may be there; above 2^53 the offset is not exact, but too high. */
  #isPlace(offset: number, bytes: number): boolean {
    return (
      offset % this.#clusterSize === 0 &&
      offset >= this.#headerBytes &&
      offset + bytes <= this.#fileEnd
    );
  }

  /** Returns how many clusters of the table were in use before. */
  #markTable(offset: number): number {
    this.#options.onTable?.(offset, this.#tableBytes);
    let shared = 0;
    for (let done = 0; done < this.#tableBytes; done += this.#clusterSize) {
      if (!this.used.mark((offset + done) / this.#clusterSize)) shared++;
    }
    return shared;
  }

  #noteInvalid(level: "L1" | "L2", what: string, at: number, hi: number, lo: number): void {
    this.invalid++;
    this.#options.report.add(() => {
      const entry = (BigInt(hi) << 32n) | BigInt(lo);
      const range = `${hex(this.#headerBytes)}..${hex(this.#fileEnd)}`;
      return `${level} entry at ${hex(at)}: ${hex(entry)} is not the offset of ${what} within ${range}`;
    });
    this.#options.onInvalid(at);
  }
}
