/**
 * Storing clusters of a qcow2 image compressed. Each stream has a host cluster of its own, of which the
 * rest stays a hole. As QEMU, only what is not allocated yet becomes compressed. Source: qcow2
 * specification, "Compressed Clusters Descriptor".
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
import type { Qcow2WriterContext } from "./writer-context.ts";

const SECTOR_SIZE = 512;
/** Host offsets have no more bits, whatever the descriptor has room for. */
const HOST_OFFSET_BITS = 56;

export class CompressedWriter implements CompressedClusterWriter {
  readonly #cursor: MappingCursor;
  readonly #allocator: ClusterAllocator;
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
    const count = this.#allocator.take(wanted);
    if (count === 0) return ALLOCATION.needsReservation;
    plan.coverStart = guestOffset;
    plan.coverEnd = guestOffset + count * clusterSize;
    plan.hostOffset = this.#allocator.taken * clusterSize;
    plan.fresh = true;
    plan.replaces = 0;
    plan.streamBytes = streamBytes.slice(0, count);
    this.#requireRoom(plan);
    return ALLOCATION.planned;
  }

  /** Whether nothing of a guest cluster has a place: it is unallocated, or zeros. */
  #isFree(cluster: number): boolean {
    this.#cursor.decode(cluster);
    const { hasCluster, compressed } = this.#cursor.entry;
    return !hasCluster && !compressed;
  }

  /** With clusters of 2 MiB, a descriptor says host offsets below 2^49 only. */
  #requireRoom(plan: WritePlan): void {
    const { hostOffset, streamBytes } = plan;
    const end = hostOffset + streamBytes.length * this.#clusterSize;
    if (end <= 2 ** Math.min(this.#shift, HOST_OFFSET_BITS)) return;
    this.#allocator.frees.add(hostOffset / this.#clusterSize, streamBytes.length);
    this.#allocator.frees.publish();
    const reason = `no compressed cluster can be at host offset ${hex(hostOffset)}`;
    throw new TsimgfsError("EFBIG", this.#path, reason);
  }

  /** As FormatWriter.link, of a plan of ours. */
  link({ coverStart, hostOffset, streamBytes }: WritePlan): void {
    const cursor = this.#cursor;
    if (!cursor.open(coverStart)) {
      this.#allocator.marks.markCorrupt(`the L2 table for ${hex(coverStart)} is gone`);
    }
    const first = coverStart / this.#clusterSize;
    for (let index = 0; index < streamBytes.length; index++) {
      const at = cursor.entryAt(first + index);
      const host = hostOffset + index * this.#clusterSize;
      this.#encode(cursor.entries.view, at, host, streamBytes[index] ?? 0);
    }
    cursor.write(first, first + streamBytes.length);
    // Threads may have cached what was compressed at these places before.
    this.#lock.bumpGeneration();
  }

  /** Put the descriptor of a stream, which starts a host cluster, at byte `at`. */
  #encode(view: DataView, at: number, host: number, bytes: number): void {
    const additionalSectors = Math.ceil(bytes / SECTOR_SIZE) - 1;
    const high = Math.floor(host / TWO_TO_32) + additionalSectors * 2 ** (this.#shift - 32);
    view.setUint32(at, (high | L2E_COMPRESSED_HI) >>> 0);
    view.setUint32(at + 4, host % TWO_TO_32);
    if (!this.#extended) return;
    // Sub-clusters of a compressed cluster are not told apart.
    view.setUint32(at + 8, 0);
    view.setUint32(at + 12, 0);
  }
}
