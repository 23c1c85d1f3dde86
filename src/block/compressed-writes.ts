/**
 * Writing clusters compressed. A stream that a power cut has lost cannot be read, not even as zeros: what
 * is written becomes durable before tables refer to it, many clusters at once.
 */

import assert from "node:assert";
import { TsimgfsError } from "../errors.ts";
import {
  ALLOCATION,
  type Allocation,
  type CompressedClusterWriter,
  type FormatWriter,
} from "../formats/writer.ts";
import type { WritableStorage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isZero } from "../syscalls/zeros.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { DiskWriter } from "./disk-writer.ts";
import type { TableChanges } from "./table-changes.ts";
import type { DetectZeroes } from "./write-policy.ts";

/** Bytes of the disk that become durable together; one cluster may be less. */
const BATCH_SIZE = 4 * 1024 * 1024;
/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;

export interface CompressedWritesContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly dataStorage: WritableStorage;
  readonly changes: TableChanges;
  /** Writes what does not get smaller, or is zeros. */
  readonly diskWriter: DiskWriter;
  readonly detectZeroes: DetectZeroes;
}

export class CompressedWrites {
  readonly #context: CompressedWritesContext;
  readonly #clusterSize: number;
  /** Streams that wait to be stored: where their clusters start on the disk, and the bytes of each. */
  #batchStart = 0;
  #streamBytes: number[] = [];
  /** Where each starts in the buffer, and where the next one does. */
  #streamStarts: number[] = [0];
  /** The streams, one behind the other. */
  #streams: NativeBuffer | undefined;
  /** The last cluster of a disk with the zeros after it. */
  #lastCluster: NativeBuffer | undefined;

  constructor(context: CompressedWritesContext) {
    this.#context = context;
    this.#clusterSize = context.writer.clusterSize;
  }

  /** As Disk.writeCompressed. */
  write(guestOffset: number, length: number, source: NativeBuffer, start: number): void {
    const { writer, diskWriter, detectZeroes } = this.#context;
    const { compressed } = writer;
    if (compressed === undefined) throw this.#refusal("ENOTSUP", "cannot have compressed clusters");
    if (length === 0) return;
    this.#requireClusters(guestOffset, length);
    writer.begin("contents");
    writer.dirtyBitmaps?.mark(guestOffset, length);
    this.#forget();
    for (let done = 0; done < length; done += this.#clusterSize) {
      const count = Math.min(this.#clusterSize, length - done);
      const isPlain = detectZeroes !== "off" && isZero(source, start + done, count);
      if (!isPlain && this.#compress(compressed, guestOffset + done, count, source, start + done)) {
        if (this.#streamBytes.length * this.#clusterSize >= BATCH_SIZE) this.#store(compressed);
        continue;
      }
      this.#store(compressed);
      diskWriter.write(guestOffset + done, count, source, start + done);
    }
    this.#store(compressed);
  }

  #refusal(code: TsimgfsError["code"], reason: string): TsimgfsError {
    return new TsimgfsError(code, this.#context.chain.image.storage.path, reason);
  }

  /** The last cluster of a disk may be a part of one. */
  #requireClusters(guestOffset: number, length: number): void {
    const size = this.#clusterSize;
    const end = guestOffset + length;
    const isWhole = end % size === 0 || end === this.#context.chain.virtualSize;
    if (guestOffset % size === 0 && isWhole) return;
    throw this.#refusal("EINVAL", `only whole clusters of ${size} bytes can be compressed`);
  }

  /** Add a cluster to those that wait. Returns false if it does not get smaller. */
  #compress(
    compressed: CompressedClusterWriter,
    guestOffset: number,
    length: number,
    source: NativeBuffer,
    start: number,
  ): boolean {
    const size = this.#clusterSize;
    const waiting = this.#streamBytes.length;
    const streamStart = this.#streamStarts[waiting] ?? 0;
    this.#streams ??= NativeBuffer.allocate(Math.max(BATCH_SIZE, size));
    let cluster = source;
    let clusterStart = start;
    if (length < size) {
      cluster = this.#lastCluster ??= NativeBuffer.allocate(size);
      clusterStart = 0;
      cluster.bytes.set(source.bytes.subarray(start, start + length));
      cluster.bytes.fill(0, length);
    }
    const bytes = compressed.compress(cluster, clusterStart, this.#streams, streamStart);
    if (bytes === 0) return false;
    if (waiting === 0) this.#batchStart = guestOffset;
    this.#streamBytes.push(bytes);
    this.#streamStarts.push(streamStart + bytes);
    return true;
  }

  /** Store all streams that wait. */
  #store(compressed: CompressedClusterWriter): void {
    const streams = this.#streamBytes.length;
    let stored = 0;
    for (let turns = 0; stored < streams; turns++) {
      assert(turns < TURNS_MAX, "compressed writing comes to no end");
      stored += this.#storeSome(compressed, stored);
    }
    this.#forget();
  }

  #forget(): void {
    this.#streamBytes = [];
    this.#streamStarts = [0];
  }

  /**
   * Store streams from the one at `index` on.
   *
   * @returns how many; 0: what was in the way is gone, try again
   */
  #storeSome(compressed: CompressedClusterWriter, index: number): number {
    const { changes } = this.#context;
    const { plan } = changes;
    try {
      const need = compressed.placing(() => this.#place(compressed, index));
      if (need === ALLOCATION.planned) this.#fill(index);
      changes.provide(need);
      return plan.streamBytes.length;
    } finally {
      plan.streamBytes = [];
    }
  }

  /** Plan places for streams from the one at `index` on, and count them, while nobody else does so. */
  #place(compressed: CompressedClusterWriter, index: number): Allocation {
    const { changes } = this.#context;
    const { plan } = changes;
    const guestOffset = this.#batchStart + index * this.#clusterSize;
    const end = this.#batchStart + this.#streamBytes.length * this.#clusterSize;
    let need: Allocation;
    changes.lockExclusive();
    try {
      if (changes.isBusy(guestOffset, end)) need = ALLOCATION.inPlace;
      else need = compressed.allocate(guestOffset, this.#streamBytes.slice(index), plan);
      if (need === ALLOCATION.planned || need === ALLOCATION.copiedTable) changes.claimPlan();
    } finally {
      changes.unlockExclusive();
    }
    if (need === ALLOCATION.planned) this.#orAbandon(() => compressed.count());
    return need;
  }

  /** @throws {StorageError} the plan is given up */
  #fill(index: number): void {
    const { changes, dataStorage } = this.#context;
    const { streamBytes, streamOffsets } = changes.plan;
    const streams = this.#streams;
    assert(streams !== undefined);
    this.#orAbandon(() => {
      // Streams that follow each other on the host are written in one go.
      let first = 0;
      for (let next = 1; next <= streamBytes.length; next++) {
        const end = (streamOffsets[next - 1] ?? 0) + (streamBytes[next - 1] ?? 0);
        if (streamOffsets[next] === end) continue;
        const start = this.#streamStarts[index + first] ?? 0;
        const hostOffset = streamOffsets[first] ?? 0;
        dataStorage.writeAt(streams, start, end - hostOffset, hostOffset);
        first = next;
      }
    });
  }

  /** If it fails, what the plan covers comes to nothing. */
  #orAbandon(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.#context.changes.abandonClaimed();
      throw error;
    }
  }
}
