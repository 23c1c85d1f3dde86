/** What a thread needs to write to a disk, put together from what all its threads share. */

import type { FormatImage } from "../formats/driver.ts";
import { attachWriter, type FormatWriting } from "../formats/formats.ts";
import type { FormatWriter } from "../formats/writer.ts";
import type { CallProgress, WritableStorage } from "../storage/storage.ts";
import { AccessLock } from "../threads/access-lock.ts";
import { BusyRanges } from "../threads/busy-ranges.ts";
import { privateCounters } from "../threads/counters.ts";
import type { UnlockedReads } from "../threads/unlocked-reads.ts";
import { BackingChain } from "./backing-chain.ts";
import { CompressedWrites } from "./compressed-writes.ts";
import { CopiedImage } from "./copied-image.ts";
import { CopyOnRead } from "./copy-on-read.ts";
import { DataWriter } from "./data-extents.ts";
import { DiskWriter } from "./disk-writer.ts";
import { OffloadedWrites } from "./offloaded-writes.ts";
import { PendingCopies } from "./pending-copies.ts";
import type { SharedReads } from "./shared-reads.ts";
import type { ReadAccess } from "./snapshot-access.ts";
import { DiskSnapshots } from "./snapshots.ts";
import { TableChanges } from "./table-changes.ts";
import type { WritePolicy } from "./write-policy.ts";

/** What all threads that use a writable disk share: plain data for structured clone. */
export interface SharedWriting {
  readonly lock: SharedArrayBuffer;
  /** Of twice as many slots as threads. */
  readonly busy: SharedArrayBuffer;
  readonly chain: SharedArrayBuffer;
  /** Of images with a backing file. */
  readonly copies: SharedArrayBuffer | undefined;
  readonly format: FormatWriting;
  readonly policy: WritePolicy;
  /** The first sector must not become that of an image of another format, nobody having stated this one. */
  readonly guardsMagic: boolean;
}

/** What one thread brings along to write. */
export interface DiskThread {
  /** A number that no other thread uses: its place in the locks. */
  readonly slot: number;
  /** Asks another thread to call `maintain`; undefined: nobody else does. */
  readonly requestMaintenance: (() => void) | undefined;
  /** Its counters of the device; undefined: nobody asks for them. */
  readonly counters?: Float64Array | undefined;
  /** Told of calls of the host that have come to an end. */
  readonly progress?: CallProgress | undefined;
}

/** How a disk of an image that is written to is used: under its lock, and knowing what has changed. */
export interface DiskAccess {
  readonly reading: ReadAccess;
  readonly reads: SharedReads;
  readonly unlocked: UnlockedReads | undefined;
  readonly lock: AccessLock;
  readonly changes: TableChanges;
  readonly formatWriter: FormatWriter;
}

/** What changes a disk. */
export interface DiskChanges {
  readonly writer: DiskWriter;
  readonly snapshots: DiskSnapshots;
  readonly compressed: CompressedWrites;
  readonly offloaded: OffloadedWrites;
  readonly copies: PendingCopies | undefined;
  readonly copier: CopyOnRead | undefined;
  /** Reads copy too. */
  readonly copyOnRead: boolean;
}

/** The files of the image itself, open for writing. */
export interface WritableFiles {
  readonly storage: WritableStorage;
  readonly dataStorage: WritableStorage | undefined;
  /** How reads of all files of the chain give up the lock; undefined: they do not. */
  readonly unlocked?: UnlockedReads | undefined;
}

/** @param images of the chain, the image itself first */
export function assembleWriting(
  [image, ...below]: readonly [FormatImage, ...FormatImage[]],
  files: WritableFiles,
  shared: SharedWriting,
  { slot, requestMaintenance, counters = privateCounters() }: DiskThread,
): { chain: BackingChain; access: DiskAccess; changes: DiskChanges } {
  const lock = new AccessLock(shared.lock, slot);
  const dataStorage = files.dataStorage ?? files.storage;
  const writer = attachWriter(shared.format, image, {
    storage: files.storage,
    dataStorage,
    lock,
    punches: shared.policy.discard === "unmap",
    requestMaintenance,
  });
  const copies = shared.copies && new PendingCopies(shared.copies);
  const top = copies === undefined ? image : new CopiedImage(image, copies);
  const chain = new BackingChain([top, ...below], shared.chain);
  const changing = new BusyRanges(shared.busy, 2 * slot);
  const copying = new BusyRanges(shared.busy, 2 * slot + 1);
  const { unlocked } = files;
  const changes = new TableChanges({ chain, writer, lock, changing, copying, copies, unlocked });
  const data = new DataWriter(image, dataStorage);
  const common = { chain, writer, data, changes, unlocked };
  const { policy, guardsMagic } = shared;
  const { resizing, filling } = lock;
  const writing = { ...common, resizing, filling, policy, guardsMagic, counters };
  const diskWriter = new DiskWriter(writing);
  const copier =
    copies && new CopyOnRead({ ...common, diskWriter, copies, counters, requestMaintenance });
  const { copyOnRead, detectZeroes } = policy;
  const compressed = new CompressedWrites({ ...common, dataStorage, diskWriter, detectZeroes });
  const offloaded = new OffloadedWrites({ ...common, dataStorage, diskWriter, guardsMagic });
  const snapshots = new DiskSnapshots(image, writer, changes);
  const { reads } = changes;
  const access = { reading: changes, reads, unlocked, lock, changes, formatWriter: writer };
  return {
    chain,
    access,
    changes: { writer: diskWriter, snapshots, compressed, offloaded, copies, copier, copyOnRead },
  };
}
