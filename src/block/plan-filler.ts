/**
 * Filling the place that a driver has planned for a write: with what is written, and around it with what the
 * disk shows there until now. It says whether that must be durable before tables refer to it. What the disk
 * shows is read under the lock; what is written goes to a place that nobody else uses, and needs none.
 */

import type { FormatWriter, ZeroSpace } from "../formats/writer.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { DataWriter } from "./data-extents.ts";
import type { TableChanges } from "./table-changes.ts";
import type { WritePolicy } from "./write-policy.ts";
import { ZeroLookup } from "./zero-lookup.ts";
import { releasedZeros } from "./zero-manner.ts";

/** Bytes of scratch memory at least. */
const SCRATCH_MIN = 4096;

/** What is written to a place: bytes of a buffer, zeros, or nothing but what was there. */
export const SOURCE = { buffer: 0, zeros: 1, nothing: 2 } as const;
export type Source = (typeof SOURCE)[keyof typeof SOURCE];

/** What is filled, in one thread. */
export interface PlanFillerContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly data: DataWriter;
  /** Has the plan. */
  readonly changes: TableChanges;
  readonly policy: WritePolicy;
}

export class PlanFiller {
  readonly #chain: BackingChain;
  readonly #writer: FormatWriter;
  readonly #data: DataWriter;
  readonly #changes: TableChanges;
  readonly #space: ZeroSpace;
  readonly #zeros: ZeroLookup;
  /** A cluster: head, data and tail of a small write. */
  #scratch: NativeBuffer | undefined;
  #covered = 0;
  /** What `write` writes: bytes of a buffer, or zeros, to a place on the host. */
  #kind: Source = SOURCE.nothing;
  #source: NativeBuffer | undefined;
  #start = 0;
  #length = 0;
  #hostOffset = 0;
  #guestOffset = 0;

  constructor(context: PlanFillerContext) {
    this.#chain = context.chain;
    this.#writer = context.writer;
    this.#data = context.data;
    this.#changes = context.changes;
    this.#space = releasedZeros(context.policy.discard === "ignore").space;
    this.#zeros = new ZeroLookup(context.chain);
  }

  /** Bytes of a write that the plan covers. */
  get covered(): number {
    return this.#covered;
  }

  /**
   * Look how much of a write the plan covers.
   *
   * @param guestOffset where the write begins, within the plan
   */
  cover(guestOffset: number, length: number): void {
    const end = Math.min(guestOffset + length, this.#changes.plan.coverEnd);
    this.#covered = end - guestOffset;
  }

  /**
   * Do what filling the plan needs the disk for; `write` does the rest. The plan may be cut to one cluster;
   * `covered` says how much of the write is done then. Under the lock.
   *
   * @returns whether it must be durable before anything refers to it
   * @throws {CorruptionError | StorageError} the plan is to be given up
   */
  prepare(guestOffset: number, kind: Source, source: NativeBuffer, start: number): boolean {
    const { plan } = this.#changes;
    if (!this.#zeros.readsAsZero(plan.coverStart, plan.coverEnd)) {
      this.#prepareAround(guestOffset, kind, source, start);
      return true;
    }
    // A place that is a hole is as good as a new one.
    const total = plan.coverEnd - plan.coverStart;
    if (this.#data.isZeroPlace(plan.fresh, plan.hostOffset, total)) {
      const place = plan.hostOffset + guestOffset - plan.coverStart;
      const needed = kind === SOURCE.buffer ? kind : SOURCE.nothing;
      this.#keep(needed, source, start, this.#covered, place, guestOffset);
      return false;
    }
    // Many new clusters are one plan, places that are given can be filled one by one.
    if (plan.fresh) this.#prepareAround(guestOffset, kind, source, start);
    else this.#preparePlace(guestOffset, kind, source, start);
    return true;
  }

  /**
   * Write what `prepare` has left.
   *
   * @throws {StorageError} the plan is to be given up
   */
  write(): void {
    const source = this.#source;
    this.#source = undefined;
    if (source === undefined || this.#length === 0) return;
    this.put(this.#kind, source, this.#start, this.#length, this.#hostOffset, this.#guestOffset);
  }

  #keep(
    kind: Source,
    source: NativeBuffer,
    start: number,
    length: number,
    hostOffset: number,
    guestOffset: number,
  ): void {
    this.#kind = kind;
    this.#source = source;
    this.#start = start;
    this.#length = kind === SOURCE.nothing ? 0 : length;
    this.#hostOffset = hostOffset;
    this.#guestOffset = guestOffset;
  }

  /**
   * A place of zeros that holds other bytes, of one cluster, gets a write and the zeros around it. In
   * one write: what says that it reads as zeros may not be durable, and no sector may become half of each.
   */
  #preparePlace(guestOffset: number, kind: Source, source: NativeBuffer, start: number): void {
    const { plan } = this.#changes;
    const { clusterSize } = this.#writer;
    const clusterEnd = (Math.floor(plan.coverStart / clusterSize) + 1) * clusterSize;
    plan.coverEnd = Math.min(plan.coverEnd, clusterEnd);
    this.#covered = Math.min(this.#covered, plan.coverEnd - guestOffset);
    const total = plan.coverEnd - plan.coverStart;
    const scratch = this.#scratchBuffer();
    scratch.bytes.fill(0, 0, total);
    if (kind === SOURCE.buffer) {
      const data = source.bytes.subarray(start, start + this.#covered);
      scratch.bytes.set(data, guestOffset - plan.coverStart);
    }
    this.#keep(SOURCE.buffer, scratch, 0, total, plan.hostOffset, plan.coverStart);
  }

  /** A place gets a write, and what was around it before. */
  #prepareAround(guestOffset: number, kind: Source, source: NativeBuffer, start: number): void {
    const { coverStart, coverEnd, hostOffset } = this.#changes.plan;
    const count = kind === SOURCE.nothing ? 0 : this.#covered;
    const head = guestOffset - coverStart;
    const total = coverEnd - coverStart;
    if (total <= this.#writer.clusterSize && count < total && kind === SOURCE.buffer) {
      // One write for all.
      const scratch = this.#scratchBuffer();
      this.#chain.read(coverStart, head, scratch, 0);
      scratch.bytes.set(source.bytes.subarray(start, start + count), head);
      this.#chain.read(guestOffset + count, total - head - count, scratch, head + count);
      this.#keep(SOURCE.buffer, scratch, 0, total, hostOffset, coverStart);
      return;
    }
    this.#copyOld(coverStart, head, hostOffset);
    this.#copyOld(guestOffset + count, total - head - count, hostOffset + head + count);
    this.#keep(kind, source, start, count, hostOffset + head, guestOffset);
  }

  /** Copy what the disk shows now to a place on the host. */
  #copyOld(guestOffset: number, length: number, hostOffset: number): void {
    const scratch = this.#scratchBuffer();
    for (let done = 0; done < length; done += scratch.length) {
      const count = Math.min(scratch.length, length - done);
      this.#chain.read(guestOffset + done, count, scratch, 0);
      this.#data.write(scratch, 0, count, hostOffset + done, guestOffset + done);
    }
  }

  /** Write bytes, or zeros, to a place on the host. */
  put(
    kind: Source,
    source: NativeBuffer,
    start: number,
    length: number,
    hostOffset: number,
    guestOffset: number,
  ): void {
    if (kind === SOURCE.buffer) this.#data.write(source, start, length, hostOffset, guestOffset);
    else this.#data.writeZeros(length, hostOffset, guestOffset, this.#space);
  }

  #scratchBuffer(): NativeBuffer {
    this.#scratch ??= NativeBuffer.allocate(Math.max(this.#writer.clusterSize, SCRATCH_MIN));
    return this.#scratch;
  }
}
