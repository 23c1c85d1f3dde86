/**
 * Storing clusters of a qcow2 image compressed. As QEMU, only what is not allocated yet becomes so.
 * Source: qcow2 specification, "Compressed Clusters Descriptor".
 */

import { TWO_TO_32 } from "../../../binary/words.ts";
import { hex, TsimgfsError } from "../../../errors.ts";
import type { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import type { ClusterEncoder } from "../../compression/cluster-encoder.ts";
import { Deflater } from "../../compression/deflater.ts";
import { ZstdEncoder } from "../../compression/zstd-encoder.ts";
import {
  ALLOCATION,
  type Allocation,
  type CompressedClusterWriter,
  type WritePlan,
} from "../../writer.ts";
import { COMPRESSION_TYPE } from "../header.ts";
import { L2E_COMPRESSED_HI, sectorCountShift } from "../table-entry.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import type { MappingCursor } from "./mapping-cursor.ts";
import { type SharedState, WORD } from "./shared-state.ts";
import { StreamPlaces } from "./stream-places.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

const SECTOR_SIZE = 512;

export class CompressedWriter implements CompressedClusterWriter {
  readonly #cursor: MappingCursor;
  readonly #allocator: ClusterAllocator;
  readonly #places: StreamPlaces;
  readonly #state: SharedState;
  readonly #lock: AccessLock;
  readonly #encoder: ClusterEncoder;
  readonly #path: string;
  readonly #clusterSize: number;
  readonly #extended: boolean;
  readonly #shift: number;

  constructor(context: Qcow2WriterContext, cursor: MappingCursor) {
    const { layout } = context;
    this.#cursor = cursor;
    this.#allocator = context.allocator;
    this.#state = context.state;
    this.#lock = context.lock;
    const isZstd = layout.header.compression_type === COMPRESSION_TYPE.zstd;
    this.#encoder = isZstd ? new ZstdEncoder() : new Deflater();
    this.#path = context.storage.path;
    this.#clusterSize = layout.clusterSize;
    this.#extended = layout.extendedL2;
    this.#shift = sectorCountShift(layout.clusterBits);
    this.#places = new StreamPlaces({
      allocator: context.allocator,
      state: context.state,
      path: this.#path,
      clusterSize: layout.clusterSize,
      refcountBits: layout.refcountBits,
      offsetBits: this.#shift,
    });
  }

  compress(source: NativeBuffer, start: number, target: NativeBuffer, targetStart: number): number {
    const size = this.#clusterSize;
    return this.#encoder.encode(source, start, size, target, targetStart, size - 1);
  }

  allocate(guestOffset: number, streamBytes: readonly number[], plan: WritePlan): Allocation {
    if (!this.#state.isSet(WORD.dirty)) return ALLOCATION.needsReservation;
    const cursor = this.#cursor;
    const table = cursor.openOwn(guestOffset, plan);
    if (table !== ALLOCATION.inPlace) return table;
    const clusterSize = this.#clusterSize;
    const first = guestOffset / clusterSize;
    if (!this.#isFree(first)) {
      const reason = `the cluster at guest offset ${hex(guestOffset)} is allocated: it cannot become compressed`;
      throw new TsimgfsError("EIO", this.#path, reason);
    }
    const end = Math.min(first + streamBytes.length, cursor.endCluster);
    let wanted = 1;
    while (first + wanted < end && this.#isFree(first + wanted)) wanted++;
    const offsets = this.#places.place(streamBytes.slice(0, wanted));
    const [hostOffset] = offsets;
    if (hostOffset === undefined) return ALLOCATION.needsReservation;
    plan.coverStart = guestOffset;
    plan.coverEnd = guestOffset + offsets.length * clusterSize;
    plan.hostOffset = hostOffset;
    plan.fresh = true;
    plan.replaces = 0;
    plan.streamBytes = streamBytes.slice(0, offsets.length);
    plan.streamOffsets = offsets;
    return ALLOCATION.planned;
  }

  placing(action: () => Allocation): Allocation {
    let need: Allocation = ALLOCATION.inPlace;
    this.#allocator.exclusively(() => {
      need = action();
    });
    return need;
  }

  count(): void {
    this.#places.count();
  }

  /** As FormatWriter.abandon, of a plan of ours: its references are found to be leaks at the end. */
  abandon(): void {
    this.#allocator.frees.forget();
  }

  /** At the end: nothing is compressed any more. */
  close(): void {
    this.#places.close();
  }

  /** Whether nothing of a guest cluster has a place: it is unallocated, or zeros. */
  #isFree(cluster: number): boolean {
    this.#cursor.decode(cluster);
    const { hasCluster, compressed } = this.#cursor.entry;
    return !hasCluster && !compressed;
  }

  /** As FormatWriter.link, of a plan of ours. */
  link({ coverStart, streamBytes, streamOffsets }: WritePlan): void {
    const cursor = this.#cursor;
    if (!cursor.open(coverStart)) {
      this.#allocator.marks.markCorrupt(`the L2 table for ${hex(coverStart)} is gone`);
    }
    const first = coverStart / this.#clusterSize;
    for (let index = 0; index < streamBytes.length; index++) {
      const at = cursor.entryAt(first + index);
      this.#encode(cursor.entries.view, at, streamOffsets[index] ?? 0, streamBytes[index] ?? 0);
    }
    cursor.write(first, first + streamBytes.length);
    // Threads may have cached what was compressed at these places before.
    this.#lock.bumpGeneration();
  }

  /** Put the descriptor of a stream at byte `at`. */
  #encode(view: DataView, at: number, host: number, bytes: number): void {
    const firstSector = Math.floor(host / SECTOR_SIZE);
    const additionalSectors = Math.floor((host + bytes - 1) / SECTOR_SIZE) - firstSector;
    const high = Math.floor(host / TWO_TO_32) + additionalSectors * 2 ** (this.#shift - 32);
    view.setUint32(at, (high | L2E_COMPRESSED_HI) >>> 0);
    view.setUint32(at + 4, host % TWO_TO_32);
    if (!this.#extended) return;
    // Sub-clusters of a compressed cluster are not told apart.
    view.setUint32(at + 8, 0);
    view.setUint32(at + 12, 0);
  }
}
