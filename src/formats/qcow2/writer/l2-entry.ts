/** One L2 entry as a writer sees it, standard or extended. Source: qcow2 specification, "L2 table entry". */

import { TWO_TO_32 } from "../../../binary/words.ts";
import { NO_OFFSET } from "../../driver.ts";
import {
  COPIED_HI,
  compressedHostOffset,
  compressedLength,
  entryHostOffset,
  L2E_COMPRESSED_HI,
  L2E_ZERO_LO,
  sectorCountShift,
} from "../table-entry.ts";
import { ALL_SUBCLUSTERS } from "./subclusters.ts";

/** What is fixed of the entries of an image. */
export interface EntryFormat {
  readonly extended: boolean;
  readonly version: number;
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly hasDataFile: boolean;
}

export class L2Entry {
  /** A host cluster belongs to it, standard: `host` is where. */
  hasCluster = false;
  host: number = NO_OFFSET;
  /** The cluster may be changed in place. */
  copied = false;
  compressed = false;
  /** compressed: bytes from `host` on that the stream may take. */
  compressedBytes = 0;
  /** A bit for each sub-cluster: reads as zeros. Standard entries: all or none. */
  zeroBits = 0;
  /** A bit for each sub-cluster: its bytes are in the host cluster. Standard entries: all or none. */
  dataBits = 0;
  /** What cannot be right, or undefined. */
  fault: string | undefined;

  readonly #format: EntryFormat;
  readonly #compressedShift: number;

  constructor(format: EntryFormat) {
    this.#format = format;
    this.#compressedShift = sectorCountShift(format.clusterBits);
  }

  /**
   * Take an entry apart.
   *
   * @param zeroBits, dataBits the second word of an extended entry; else 0
   * @param guestCluster guest offset of the cluster
   */
  decode(hi: number, lo: number, zeroBits: number, dataBits: number, guestCluster: number): void {
    const { extended, hasDataFile } = this.#format;
    this.hasCluster = false;
    this.host = NO_OFFSET;
    this.compressedBytes = 0;
    this.zeroBits = 0;
    this.dataBits = 0;
    this.fault = undefined;
    this.copied = (hi & COPIED_HI) !== 0;
    this.compressed = (hi & L2E_COMPRESSED_HI) !== 0;
    if (this.compressed) {
      this.#decodeCompressed(hi, lo);
      return;
    }
    const offset = entryHostOffset(hi, lo);
    this.hasCluster = offset !== 0 || (hasDataFile && this.copied);
    if (this.hasCluster) {
      this.host = offset;
      this.#checkOffset(offset, guestCluster);
    }
    if (extended) {
      this.zeroBits = zeroBits;
      this.dataBits = dataBits;
      if ((zeroBits & dataBits) !== 0 || (!this.hasCluster && dataBits !== 0)) {
        this.fault = "its sub-cluster bitmap contradicts itself or the host offset";
      }
    } else if ((lo & L2E_ZERO_LO) !== 0) {
      this.zeroBits = ALL_SUBCLUSTERS;
      if (this.#format.version < 3) this.fault = "it is a zero cluster in a version 2 image";
    } else if (this.hasCluster) this.dataBits = ALL_SUBCLUSTERS;
  }

  /** Nothing is here at all. */
  get isUnallocated(): boolean {
    return !this.compressed && !this.hasCluster && this.zeroBits === 0;
  }

  #decodeCompressed(hi: number, lo: number): void {
    this.host = compressedHostOffset(hi, lo, this.#compressedShift);
    this.compressedBytes = compressedLength(hi, this.#compressedShift, this.host);
    if (this.#format.hasDataFile) this.fault = "it is compressed, with an external data file";
    if (!Number.isFinite(this.host)) this.fault = "its host offset is above the limit of 2^53 - 1";
  }

  #checkOffset(offset: number, guestCluster: number): void {
    if (!Number.isFinite(offset)) this.fault = "its host offset is above the limit of 2^53 - 1";
    else if (offset % this.#format.clusterSize !== 0) {
      this.fault = "its host offset is not a multiple of the cluster size";
    } else if (this.#format.hasDataFile && offset !== guestCluster) {
      this.fault = "its host offset differs from the guest offset in an external data file";
    }
  }
}

/**
 * Put an entry with its own cluster, or with none, at byte `at`.
 *
 * @param host NO_OFFSET: none
 * @param zeroBits, dataBits of a standard entry: all or none
 */
export function encodeEntry(
  view: DataView,
  at: number,
  extended: boolean,
  host: number,
  zeroBits: number,
  dataBits: number,
): void {
  const offset = host === NO_OFFSET ? 0 : host;
  const flags = host === NO_OFFSET ? 0 : COPIED_HI;
  const zero = !extended && zeroBits !== 0 ? L2E_ZERO_LO : 0;
  view.setUint32(at, (Math.floor(offset / TWO_TO_32) | flags) >>> 0);
  view.setUint32(at + 4, ((offset % TWO_TO_32) | zero) >>> 0);
  if (extended) {
    view.setUint32(at + 8, zeroBits >>> 0);
    view.setUint32(at + 12, dataBits >>> 0);
  }
}
