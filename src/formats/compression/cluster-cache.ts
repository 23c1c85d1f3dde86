/**
 * The compressed clusters that a thread read last, so that a reader that comes along in small pieces
 * does not decompress a cluster for every piece. A cluster is decompressed only as far as was asked
 * for; the newest one goes on from there. A read of a whole cluster bypasses the cache.
 */

import { CorruptionError, hex } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { Extent } from "../driver.ts";
import type { ClusterDecoder } from "./cluster-decoder.ts";
import { Inflater } from "./inflater.ts";
import { ZstdDecoder } from "./zstd-decoder.ts";

const SLOTS = 4;

export type Compression = "zlib" | "zstd";

/** What all compressed clusters of an image have in common. */
export interface CompressedClusters {
  readonly storage: Storage;
  readonly compression: Compression;
  /** Bytes. */
  readonly clusterSize: number;
}

class Slot {
  storage: Storage | undefined;
  hostOffset = 0;
  compressedBytes = 0;
  /** Bytes of the cluster that are in `buffer`. */
  produced = 0;
  /** When the slot was used last: a count of reads. */
  used = 0;
  buffer = new NativeBuffer(new ArrayBuffer(0));
}

export class ClusterCache {
  readonly #slots = Array.from({ length: SLOTS }, () => new Slot());
  #input: NativeBuffer | undefined;
  /** The slot whose stream is in `#input`, and which the decoder can continue. */
  #current: Slot | undefined;
  readonly #decoders: Readonly<Record<Compression, ClusterDecoder>>;
  #reads = 0;

  /** @param decoders used by this cache alone: each is in the middle of one stream */
  constructor(
    decoders: Readonly<Record<Compression, ClusterDecoder>> = {
      zlib: new Inflater(),
      zstd: new ZstdDecoder(),
    },
  ) {
    this.#decoders = decoders;
  }

  /**
   * Copy `length` bytes, from byte `skip` of the cluster on, to `target.bytes[start]` on.
   *
   * @param extent where the stream is; skip + length <= clusterSize
   * @throws {CorruptionError} the stream is damaged, or ends before these bytes
   */
  read(
    cluster: CompressedClusters,
    extent: Extent,
    target: NativeBuffer,
    start: number,
    skip: number,
    length: number,
  ): void {
    const cached = this.#find(cluster.storage, extent);
    if (cached === undefined && length === cluster.clusterSize) {
      const produced = this.#begin(cluster, extent).produce(target, start, length);
      if (produced !== length) throwDamaged(cluster, extent, produced);
      return;
    }
    const slot = cached ?? this.#replace(cluster, extent);
    slot.used = ++this.#reads;
    if (slot.produced < skip + length) this.#produce(cluster, extent, slot, skip + length);
    target.bytes.set(slot.buffer.bytes.subarray(skip, skip + length), start);
  }

  /** What is at a place on the host may be another stream now. */
  forget(): void {
    this.#current = undefined;
    for (const slot of this.#slots) slot.storage = undefined;
  }

  #find(storage: Storage, extent: Extent): Slot | undefined {
    for (let index = 0; index < SLOTS; index++) {
      const slot = this.#slots[index];
      if (
        slot !== undefined &&
        slot.hostOffset === extent.hostOffset &&
        slot.storage === storage &&
        slot.compressedBytes === extent.compressedBytes
      ) {
        return slot;
      }
    }
    return undefined;
  }

  #replace({ storage, clusterSize }: CompressedClusters, extent: Extent): Slot {
    const slot = this.#slots.reduce((oldest, other) => (other.used < oldest.used ? other : oldest));
    if (slot === this.#current) this.#current = undefined;
    if (slot.buffer.length < clusterSize) {
      slot.buffer = NativeBuffer.allocate(clusterSize);
    }
    slot.storage = storage;
    slot.hostOffset = extent.hostOffset;
    slot.compressedBytes = extent.compressedBytes;
    slot.produced = 0;
    return slot;
  }

  #produce(cluster: CompressedClusters, extent: Extent, slot: Slot, wanted: number): void {
    let decoder = this.#decoders[cluster.compression];
    if (this.#current !== slot) {
      slot.produced = 0;
      decoder = this.#begin(cluster, extent);
      this.#current = slot;
    }
    const end = decoder.partial ? wanted : cluster.clusterSize;
    slot.produced += decoder.produce(slot.buffer, slot.produced, end - slot.produced);
    if (slot.produced < end) {
      const produced = slot.produced;
      slot.storage = undefined;
      this.#current = undefined;
      throwDamaged(cluster, extent, produced);
    }
  }

  /** Start with another stream: no slot can be continued after that. */
  #begin({ storage, compression }: CompressedClusters, extent: Extent): ClusterDecoder {
    this.#current = undefined;
    const length = extent.compressedBytes;
    if (this.#input === undefined || this.#input.length < length) {
      this.#input = NativeBuffer.allocate(length);
    }
    storage.readAt(this.#input, 0, length, extent.hostOffset);
    const decoder = this.#decoders[compression];
    decoder.begin(this.#input, length);
    return decoder;
  }
}

function throwDamaged(
  { storage, clusterSize }: CompressedClusters,
  extent: Extent,
  produced: number,
): never {
  const offset = extent.hostOffset;
  const reason = `compressed cluster at ${hex(offset)} (${extent.compressedBytes} bytes) is damaged: ${produced} of ${clusterSize} bytes`;
  throw new CorruptionError(storage.path, reason, { offset });
}
