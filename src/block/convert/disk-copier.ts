/**
 * Copying a disk to another one, piece by piece, as one of several threads: what reads as zeros is found,
 * and left out or told to the tables.
 */

import { TsimgfsError } from "../../errors.ts";
import type { ThreadResources } from "../../formats/driver.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { isZero } from "../../syscalls/zeros.ts";
import { type AttachFile, attachDisk } from "../attach-disk.ts";
import type { Disk } from "../disk.ts";
import type { SharedLayer } from "../open-chain.ts";
import type { SharedWriting } from "../writing-parts.ts";
import { CopyCursor, CopyPiece } from "./copy-cursor.ts";
import { HostBytes, type SharedSource, SOURCE, SourceDisks } from "./source-disks.ts";

/** Data is copied in pieces of this many bytes; zeros that are looked for may be longer. */
const PIECE_SIZE = 2 * 1024 * 1024;
/** The unit of reading where something is damaged, bytes. */
const SECTOR_SIZE = 512;
/** What cannot be read is split into so many parts, each of which may be readable. */
const SALVAGE_PARTS = 8;

/** How a disk is copied. */
export interface CopyManner {
  /** Bytes: zeros of that length that start at a multiple of it are left out of data; 0: none are. */
  readonly sparseSize: number;
  /** Clusters become compressed. */
  readonly compressed: boolean;
  /** The target reads as zeros where nothing is written. */
  readonly targetIsZero: boolean;
  /** The target has the backing file of the source: only what is above it is copied. */
  readonly topOnly: boolean;
  /** What cannot be read is taken for zeros. */
  readonly salvage: boolean;
  /** The host copies data where it can; zeros in it are not looked for then. */
  readonly offload: boolean;
}

/** What all threads need that copy together: plain data. */
export interface SharedCopy {
  readonly sources: readonly SharedSource[];
  /** Bytes of the source before what is copied. */
  readonly skip: number;
  /** Bytes that are copied. */
  readonly size: number;
  readonly target: {
    readonly layers: readonly SharedLayer[];
    readonly writing: SharedWriting | undefined;
  };
  /** Of `createCopyCursor`. */
  readonly cursor: SharedArrayBuffer;
  readonly manner: CopyManner;
}

/** A part of the source that is lost. */
export type TellUnreadable = (loss: {
  path: string;
  offset: number;
  length: number;
  reason: string;
}) => void;

/** One thread's part in copying. */
export class DiskCopier {
  readonly target: Disk;
  readonly #sources: SourceDisks;
  readonly #cursor: CopyCursor;
  readonly #manner: CopyManner;
  readonly #tellUnreadable: TellUnreadable;
  readonly #skip: number;
  readonly #pieceSize: number;
  readonly #piece = new CopyPiece();
  readonly #buffer: NativeBuffer;
  readonly #hostBytes = new HostBytes();
  #needsMaintenance = false;
  /** Until the host cannot do it once: then it will hardly be able to do the rest. */
  #offloads: boolean;

  /**
   * @param slot a number that no other thread uses, below those that the target is open for
   * @param attachFile of the target's files
   */
  constructor(
    shared: SharedCopy,
    slot: number,
    resources: ThreadResources,
    tellUnreadable: TellUnreadable,
    attachFile?: AttachFile,
  ) {
    const { manner, skip, size } = shared;
    this.#manner = manner;
    this.#offloads = manner.offload;
    this.#skip = skip;
    this.#tellUnreadable = tellUnreadable;
    this.#sources = SourceDisks.attach(shared.sources, resources);
    const requestMaintenance = (): void => {
      this.#needsMaintenance = true;
    };
    const thread = { slot, requestMaintenance };
    this.target = attachDisk(shared.target, resources, thread, attachFile);
    this.#pieceSize =
      PIECE_SIZE * 2 ** Math.ceil(Math.log2(Math.max(1, manner.sparseSize / PIECE_SIZE)));
    this.#buffer = NativeBuffer.allocate(this.#pieceSize);
    const { clusterSize } = this.target.chain.image;
    this.#cursor = new CopyCursor(shared.cursor, this.#sources, {
      skip,
      size,
      pieceSize: this.#pieceSize,
      alignment: manner.compressed ? clusterSize : 1,
      topOnly: manner.topOnly,
      skipsZeros: manner.targetIsZero && manner.sparseSize > 0,
      salvage: manner.salvage,
    });
  }

  /** Bytes from the start on that this thread or another one has copied, or is about to. */
  get position(): number {
    return this.#cursor.position;
  }

  /** Let all threads end after the piece that each is at. */
  stop(): void {
    this.#cursor.stop();
  }

  /**
   * Copy a piece that no other thread copies.
   *
   * @returns false: there are no more
   * @throws {TsimgfsError} it cannot be read, or written
   */
  step(): boolean {
    const piece = this.#piece;
    if (!this.#cursor.take(piece)) return false;
    if (piece.length > 0) this.#copy(piece);
    if (this.#needsMaintenance) {
      this.#needsMaintenance = false;
      this.target.maintain();
    }
    return true;
  }

  #copy({ kind, offset, length }: CopyPiece): void {
    const { sparseSize } = this.#manner;
    if (kind === SOURCE.data) {
      const offloaded = this.#offloads ? this.#offload(offset, length) : 0;
      if (offloaded < length) this.#copyData(offset + offloaded, length - offloaded);
    } else if (sparseSize > 0) this.#zero(offset, length);
    else this.#writeZeroBytes(offset, length);
  }

  #copyData(offset: number, length: number): void {
    const { sparseSize, compressed } = this.#manner;
    this.#read(offset, length);
    if (compressed) this.#writeCompressed(offset, length);
    else if (sparseSize === 0) this.target.write(offset, length, this.#buffer, 0);
    else this.#writeSparsely(offset, length);
  }

  /** Let the host copy data. Returns the bytes from the start on that are done. */
  #offload(offset: number, length: number): number {
    const found = this.#hostBytes;
    let done = 0;
    while (done < length) {
      this.#sources.hostBytesAt(this.#skip + offset + done, length - done, found);
      if (found.length === 0 || found.storage === undefined) return done;
      const count = Math.min(found.length, length - done);
      const copied = this.target.copyFrom(offset + done, count, found.storage, found.offset);
      done += copied;
      if (copied < count) {
        this.#offloads = false;
        return done;
      }
    }
    return done;
  }

  #read(offset: number, length: number): void {
    try {
      this.#sources.read(this.#skip + offset, length, this.#buffer, 0);
    } catch (error) {
      if (!this.#manner.salvage) throw error;
      this.#salvage(offset, length, 0);
    }
  }

  /** Read what can be read of a range that cannot be read as a whole; the rest becomes zeros. */
  #salvage(offset: number, length: number, start: number): void {
    const part = Math.ceil(length / SALVAGE_PARTS / SECTOR_SIZE) * SECTOR_SIZE;
    for (let done = 0; done < length; done += part) {
      const count = Math.min(part, length - done);
      const sourceOffset = this.#skip + offset + done;
      try {
        this.#sources.read(sourceOffset, count, this.#buffer, start + done);
      } catch (error) {
        if (!(error instanceof TsimgfsError)) throw error;
        if (count > SECTOR_SIZE) this.#salvage(offset + done, count, start + done);
        else {
          this.#buffer.bytes.fill(0, start + done, start + done + count);
          const path = this.#sources.pathAt(sourceOffset);
          this.#tellUnreadable({ path, offset: sourceOffset, length: count, reason: error.reason });
        }
      }
    }
  }

  /** Zeros as data: nothing is to be left out. */
  #writeZeroBytes(offset: number, length: number): void {
    this.#buffer.bytes.fill(0);
    for (let done = 0; done < length; done += this.#pieceSize) {
      const count = Math.min(this.#pieceSize, length - done);
      this.target.write(offset + done, count, this.#buffer, 0);
    }
  }

  #zero(offset: number, length: number): void {
    if (this.#manner.targetIsZero) return;
    this.target.writeZeroes(offset, length, { unmap: true });
  }

  /** Write data, but for zeros that are long enough. */
  #writeSparsely(offset: number, length: number): void {
    const { sparseSize } = this.#manner;
    let runStart = 0;
    let runIsZero = false;
    let done = 0;
    while (done < length) {
      const count = Math.min(sparseSize - ((offset + done) % sparseSize), length - done);
      const zero = isZero(this.#buffer, done, count);
      if (zero !== runIsZero) {
        this.#writeRun(offset, runStart, done, runIsZero);
        runStart = done;
        runIsZero = zero;
      }
      done += count;
    }
    this.#writeRun(offset, runStart, done, runIsZero);
  }

  #writeRun(offset: number, from: number, to: number, zero: boolean): void {
    if (from === to) return;
    if (zero) this.#zero(offset + from, to - from);
    else this.target.write(offset + from, to - from, this.#buffer, from);
  }

  /** As `#writeSparsely`: of clusters that become compressed, only whole ones are left out. */
  #writeCompressed(offset: number, length: number): void {
    const { clusterSize } = this.target.chain.image;
    const { sparseSize } = this.#manner;
    let runStart = 0;
    let runIsZero = false;
    for (let done = 0; done < length; done += clusterSize) {
      const zero =
        sparseSize > 0 && isZero(this.#buffer, done, Math.min(clusterSize, length - done));
      if (zero === runIsZero) continue;
      this.#compressRun(offset, runStart, done, runIsZero);
      runStart = done;
      runIsZero = zero;
    }
    this.#compressRun(offset, runStart, length, runIsZero);
  }

  #compressRun(offset: number, from: number, to: number, zero: boolean): void {
    if (from === to) return;
    if (zero) {
      this.#zero(offset + from, to - from);
      return;
    }
    const { clusterSize } = this.target.chain.image;
    const end = offset + to;
    // A target that is longer has a part of its own in the last cluster.
    const odd = end === this.target.virtualSize ? 0 : end % clusterSize;
    if (to - from > odd) {
      this.target.writeCompressed(offset + from, to - from - odd, this.#buffer, from);
    }
    if (odd > 0) this.target.write(end - odd, odd, this.#buffer, to - odd);
  }
}
