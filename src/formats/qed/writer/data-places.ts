/** Where the data of clusters is: runs that follow each other on the host, where nothing else can be. */

import { hex } from "../../../errors.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import type { MappingCursor } from "./mapping-cursor.ts";
import { NUMBER, type SharedState } from "./shared-state.ts";
import type { QedWriterContext } from "./writer-context.ts";

export class DataPlaces {
  readonly #cursor: MappingCursor;
  readonly #state: SharedState;
  readonly #allocator: ClusterAllocator;
  readonly #metadata: MetadataMap;
  readonly #clusterSize: number;
  readonly #headerBytes: number;

  constructor({ layout, state, allocator, metadata }: QedWriterContext, cursor: MappingCursor) {
    const { cluster_size, header_size } = layout.header;
    this.#cursor = cursor;
    this.#state = state;
    this.#allocator = allocator;
    this.#metadata = metadata;
    this.#clusterSize = cluster_size;
    this.#headerBytes = header_size * cluster_size;
  }

  /**
   * Bytes from the start of a cluster on whose places on the host follow each other: whole clusters of the
   * open slice. As MappingCursor.open, also under the shared lock.
   *
   * @param host the entry of the cluster, the offset of data
   * @param wanted bytes; it may be up to a cluster more
   */
  lengthOfRun(cluster: number, host: number, wanted: number): number {
    const cursor = this.#cursor;
    let length = this.#clusterSize;
    for (let next = cluster + 1; length < wanted && next < cursor.endCluster; next++) {
      if (cursor.entryOf(next) !== host + length) break;
      length += this.#clusterSize;
    }
    return length;
  }

  /**
   * Refuse to write where no data can be. What was there at open was looked at then.
   *
   * @param host the entry of a guest cluster
   * @param length bytes, of whole clusters
   * @throws {CorruptionError}
   */
  check(cluster: number, host: number, length: number): void {
    const clusterSize = this.#clusterSize;
    const fileEnd = this.#state.get(NUMBER.fileClusters) * clusterSize;
    const isAligned = host % clusterSize === 0;
    if (isAligned && host >= this.#headerBytes && host + length <= fileEnd) {
      const what = this.#metadata.overlap(host / clusterSize, length / clusterSize);
      if (what === undefined) return;
      this.#allocator.refuseCorrupt(`data at ${hex(host)} lies on ${what}`, host);
    }
    const reason = `the cluster offset ${hex(host)} (guest offset ${hex(cluster * clusterSize)}) is not a multiple of the cluster size ${hex(clusterSize)} within ${hex(this.#headerBytes)}..${hex(fileEnd)}`;
    this.#allocator.refuseCorrupt(reason);
  }
}
