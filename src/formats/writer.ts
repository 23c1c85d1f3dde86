/**
 * The interface between format drivers and the block layer for changing an image. A driver says where
 * bytes go and how its tables change; the block layer fills, copies, locks and waits for the disk. That
 * gives every format the same order (native-notes/writing.md):
 *
 *     reserve     clusters are counted as used, durably, before anything refers to them
 *     allocate    picks some of them for a range of the disk
 *     (block)     writes head, data and tail there; waits until it is durable where older data would be lost
 *     link        lets the tables refer to them; what they referred to before is freed late
 */

import type { NativeBuffer } from "../syscalls/native-buffer.ts";

/** What must happen before a range can be written. */
export const ALLOCATION = {
  /** The plan says where: fill it, then `link`. */
  planned: 0,
  /** It is in place by now: nothing to allocate. */
  inPlace: 1,
  /** No clusters are left: `reserve` without the lock, then ask again. */
  needsReservation: 2,
  /** A mapping table was copied, as the plan says: make that durable, `link`, then ask again. */
  copiedTable: 3,
  /** Too much waits to be freed: `flush` and `maintain` without the lock, then ask again. */
  needsBarrier: 4,
} as const;
export type Allocation = (typeof ALLOCATION)[keyof typeof ALLOCATION];

/** Where a part of a write goes. Made once and overwritten: hot paths make no garbage. */
export class WritePlan {
  /** The guest range that the tables will say is here: whole units, all of which must be filled. */
  coverStart = 0;
  coverEnd = 0;
  /** Host offset of `coverStart` in the data storage. */
  hostOffset = 0;
  /** The host bytes are zeros, durably: only what is not zero must be written. */
  fresh = false;
  /** Of a copied table: the table that it replaces. */
  replaces = 0;
  /** Not empty: clusters are compressed; the stream of each has so many bytes. */
  streamBytes: readonly number[] = [];
  /** Where each stream starts on the host, in the data storage. */
  streamOffsets: readonly number[] = [];
}

/** Where bytes are that can be written without changing a table. */
export class HostPlace {
  hostOffset = 0;
}

/**
 * What a range gets on the host, which reads as it did: places; space, too; or zeros that are written, if it
 * reads as zeros.
 */
export type Occupation = "metadata" | "falloc" | "full";

/** What becomes of the host clusters of a range that is zeroed. */
export type ZeroSpace = "release" | "keep";

/** How zeroing went: bytes of the disk that are done now, or what must happen first. */
export class ZeroProgress {
  need: Allocation = ALLOCATION.inPlace;
  /** Bytes from the start of the range on; 0 with a need. */
  done = 0;
  /** True: these bytes cannot become zeros by a change of tables; zeros must be written. */
  mustWrite = false;
}

/**
 * What a change does to the disk: `contents` may change what it reads as; `places` only where that is,
 * as copying from a backing file does.
 */
export type Change = "contents" | "places";

/** Storing clusters compressed. */
export interface CompressedClusterWriter {
  /**
   * Compress a cluster from `source.bytes[start]` on into `target.bytes[targetStart]` on, where there is
   * room for as much.
   *
   * @returns bytes of the stream; 0: it does not get smaller
   */
  compress(source: NativeBuffer, start: number, target: NativeBuffer, targetStart: number): number;

  /** Nobody else chooses places for streams meanwhile. Without the lock of the image, which comes after it. */
  placing(action: () => Allocation): Allocation;

  /**
   * As FormatWriter.allocate, in `placing`: choose places for streams of clusters that follow each other. They
   * become durable before they are linked.
   *
   * @param guestOffset a multiple of the cluster size
   * @throws {TsimgfsError} EIO: the first cluster is allocated
   */
  allocate(guestOffset: number, streamBytes: readonly number[], plan: WritePlan): Allocation;

  /** Count what was planned, in the same `placing`, without the lock of the image. */
  count(): void;
}

/** Letting an image have nothing of its own: its backing file alone is the disk then. */
export interface Deallocation {
  /**
   * Let the tables say nothing about the start of a range any more. Under the exclusive lock.
   *
   * @param guestOffset a multiple of the cluster size
   * @param length of whole clusters, or up to the end of the disk
   * @param plan overwritten if a table was copied
   */
  deallocate(guestOffset: number, length: number, plan: WritePlan, out: ZeroProgress): void;
}

/** Bitmaps in the image that note down what of the disk changes. */
export interface DirtyBitmaps {
  /** A range is about to change. Cheap where it is marked; in any thread, without a lock. */
  mark(guestOffset: number, length: number): void;
}

/** A bitmap in the directory of an image. */
export interface StoredBitmap {
  readonly name: string;
  /** Writes to the disk are marked in it. */
  readonly isEnabled: boolean;
  /** What it says is to be relied upon: who marked in it has stored it. */
  readonly isConsistent: boolean;
  /** Bytes of its bits. */
  readonly bytes: number;
}

/** What a bitmap says. */
export interface BitmapContents {
  readonly granularityBits: number;
  /** Bytes of the disk. */
  readonly virtualSize: number;
  readonly bits: Uint8Array;
}

/** A change of the persistent bitmaps of an image. */
export type BitmapEdit = { readonly name: string } & (
  | {
      readonly action: "add";
      /** Bytes, a power of two; default: by the size of clusters. */
      readonly granularity: number | undefined;
    }
  | { readonly action: "remove" | "clear" | "enable" | "disable" }
  | {
      readonly action: "merge";
      /** What is marked, too: another bitmap of the image by its name, or one of another image. */
      readonly source: string | BitmapContents;
    }
);

/** What a new internal snapshot says of itself. */
export interface NewSnapshot {
  readonly name: string;
  /** When it was made: since the epoch. */
  readonly seconds: number;
  readonly nanoseconds: number;
}

/**
 * Making, applying and deleting internal snapshots: each as a whole or not at all, durably. Without the
 * lock, but no other thread may change tables meanwhile.
 */
export interface SnapshotWriter {
  /**
   * Keep the disk as it is now.
   *
   * @throws {TsimgfsError} EINVAL: the name is too long, or refcounts too narrow; EFBIG: a limit is reached;
   *   ENOTSUP: the image cannot have snapshots
   */
  create(snapshot: NewSnapshot): void;
  /**
   * Let the disk be again what it was, its size included.
   *
   * @param number of FormatImage.readSnapshots
   */
  apply(number: number): void;
  /** As `apply`: forget what the disk was. */
  delete(number: number): void;
}

export interface FormatWriter {
  /** Undefined: the format has no internal snapshots. */
  readonly snapshots?: SnapshotWriter | undefined;
  /**
   * Change the persistent bitmaps, durably, and after all that was written before. Nobody else uses the image,
   * and nothing is written after that: `close` follows. Undefined: the format has none.
   *
   * @throws {UsageError} an edit cannot be made; no bitmap is changed
   */
  editBitmaps?(edits: readonly BitmapEdit[]): void;
  /** Undefined: there are none. */
  readonly dirtyBitmaps?: DirtyBitmaps | undefined;
  /** Undefined: what the image has, it keeps. */
  readonly deallocation?: Deallocation | undefined;
  /** Undefined: the image cannot have compressed clusters. */
  readonly compressed?: CompressedClusterWriter | undefined;
  /** Bytes that one table entry (or bit) decides about: less than that cannot be zeroed by tables. */
  readonly unit: number;
  /** Bytes: of the cluster, which COW copies at most. */
  readonly clusterSize: number;
  /** Tables can say that a unit reads as zeros, whatever a backing file has there. */
  readonly hasZeroClusters: boolean;
  /** What a disk must have where it grows; undefined: nothing. */
  readonly growthOccupation?: Occupation | undefined;

  /**
   * Announce a change: features that this writer does not maintain are cleared, durably, before the first
   * one, and maintenance is asked for, so that whoever maintains the image knows that it has to be closed. Cheap
   * when it was done before. Without the lock.
   *
   * @throws {CorruptionError} the image was found corrupt: nothing is written any more
   */
  begin(change: Change): void;

  /**
   * Bytes from `guestOffset` on that can be written where they are. Under the shared lock.
   *
   * @param out where
   * @returns 0 if tables must change first
   */
  mapInPlace(guestOffset: number, maxLength: number, out: HostPlace): number;

  /**
   * Choose a place for the start of a range. Under the exclusive lock, as all that follows.
   *
   * @param plan overwritten where the result says so
   */
  allocate(guestOffset: number, length: number, plan: WritePlan): Allocation;

  /** Let the tables refer to what was planned and filled. */
  link(plan: WritePlan): void;

  /** Filling failed: what was planned is free again (and may hold rubbish). */
  abandon(plan: WritePlan): void;

  /**
   * Make the start of a range read as zeros by a change of tables.
   *
   * @param guestOffset a multiple of `unit`
   * @param length of whole units, or up to the end of the disk
   * @param backed bytes from `guestOffset` on that show the backing file where nothing is allocated
   * @param plan overwritten if a table was copied
   */
  zero(
    guestOffset: number,
    length: number,
    space: ZeroSpace,
    backed: number,
    plan: WritePlan,
    out: ZeroProgress,
  ): void;

  /**
   * Refuse a change of the size that the image cannot have.
   *
   * @param oldSize, newSize bytes
   * @throws {TsimgfsError}
   */
  checkResizable(oldSize: number, newSize: number): void;

  /**
   * Make tables long enough for a size; the disk stays as it is. Without the lock, but no other thread may
   * change tables meanwhile.
   *
   * @throws {TsimgfsError} EFBIG: more than the format can say
   */
  growTables(virtualSize: number): void;

  /** Let the image have another size, durably, and all threads know. Without the lock. */
  setVirtualSize(virtualSize: number): void;

  /**
   * Let nothing be allocated past the end of the disk any more; nobody reads there. Without the lock, but no
   * other thread may change tables meanwhile.
   *
   * @param virtualSize bytes: where that is
   */
  dropTail(virtualSize: number): void;

  /** Let this thread alone take the disk for larger (undefined: no more), to prepare what is new. */
  pretendSize(virtualSize: number | undefined): void;

  /**
   * Do what changes the header of the image's file: nobody else does so meanwhile. Without the lock.
   *
   * @throws what `action` throws
   */
  changeHeader(action: () => void): void;

  /** Make clusters available. Without the lock: it waits for the disk. */
  reserve(): void;

  /** Make everything durable that was written before. Without the lock. */
  flush(): void;

  /** Prepare reservations and free what can be freed by now. Without the lock. */
  maintain(): void;

  /** Clusters wait to be freed: a `flush` and `maintain` would do it. */
  hasFrees(): boolean;

  /** End orderly: give back what was reserved and free what is to be freed. Without the lock. */
  close(): void;

  /**
   * Take over structural changes that another thread made, if the generation is another one than the
   * last. Under the lock.
   */
  refresh(generation: number): void;
}
