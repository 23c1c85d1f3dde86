/** Host clusters for what a repair writes anew: nothing refers to them, and the old refcounts agree. */

import { StorageError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { Analysis } from "./analysis.ts";
import { BLOCK_FAULT } from "./refcount-table.ts";

/** Our limit, clusters: a refcount block that is garbage must not make the file huge. */
const AVOIDED_MAX = 2 ** 16;

/** stored: as the image had them. rebuilt: by a repair, which knows no more than what it counted. */
export type RefcountOrigin = "stored" | "rebuilt";

export class FreeClusters {
  readonly #analysis: Analysis;
  readonly #origin: RefcountOrigin;
  readonly #storage: WritableStorage;
  /** No cluster below it is free. */
  #hint = 1;
  /** The first cluster behind the file, and behind all that was appended. */
  #end: number;
  #oldBlocks: ReadonlySet<number> | undefined;

  constructor(analysis: Analysis, storage: WritableStorage, origin: RefcountOrigin = "stored") {
    this.#analysis = analysis;
    this.#origin = origin;
    this.#storage = storage;
    this.#end = Math.ceil(analysis.image.length / analysis.image.layout.clusterSize);
  }

  /**
   * Take `count` adjacent clusters: each has one reference from now on.
   *
   * @returns the first one
   * @throws {StorageError} ENOSPC: the image is on a device that has no room
   */
  take(count: number): number {
    const first = this.#find(count);
    for (let cluster = first; cluster < first + count; cluster++) {
      this.#analysis.references.counts.add(cluster, 1);
    }
    return first;
  }

  #find(count: number): number {
    const { references, table } = this.#analysis;
    const { counts } = references;
    const isFree = (cluster: number): boolean =>
      counts.get(cluster) === 0 && table.get(cluster) === 0;
    // A block that is not there may be lost, as references are, and one that was built since knows of none.
    const isStoredAsFree = (cluster: number): boolean =>
      this.#origin === "stored" && isFree(cluster) && this.#isInIntactBlock(cluster);
    const areLost = this.#areReferencesLost();
    const found = this.#findRun(count, this.#hint, areLost ? isStoredAsFree : isFree);
    if (found !== undefined) {
      if (count === 1) this.#hint = found + 1;
      return found;
    }
    if (this.#storage.resizable) return this.#append(count);
    // A device does not grow: leaked clusters do, unless references to them may be lost.
    this.#oldBlocks ??= this.#damagedBlocks();
    const isLeaked = (cluster: number): boolean =>
      counts.get(cluster) === 0 && this.#oldBlocks?.has(cluster) === false;
    const last = this.#findRun(count, 1, areLost ? isFree : isLeaked);
    if (last !== undefined) return last;
    throw new StorageError("ENOSPC", this.#storage.path, "no room for new refcount structures");
  }

  /** Whether entries are damaged whose meaning is lost: what they referred to is not counted. */
  #areReferencesLost(): boolean {
    return this.#analysis.findings.count("reference") > 0;
  }

  #isInIntactBlock(cluster: number): boolean {
    const { table } = this.#analysis;
    const block = Math.floor(cluster / table.blockEntries);
    return table.faults[block] === BLOCK_FAULT.none && table.blockOffset(block) !== 0;
  }

  /** Clusters behind the file, but none that something may refer to, which would then show them. */
  #append(count: number): number {
    const { references } = this.#analysis;
    let first = this.#end;
    for (let cluster = first; cluster < first + count; cluster++) {
      const isTaken = references.counts.get(cluster) > 0 || references.isDangling(cluster);
      if (isTaken || this.#mayBeReferenced(cluster)) first = cluster + 1;
    }
    this.#end = first + count;
    return first;
  }

  /** Whether references to a cluster past the end may be lost: only its refcount tells of them. */
  #mayBeReferenced(cluster: number): boolean {
    const { table, image } = this.#analysis;
    if (!this.#areReferencesLost()) return false;
    const isNear = cluster < image.length / image.layout.clusterSize + AVOIDED_MAX;
    return this.#isInIntactBlock(cluster) && isNear && table.get(cluster) > 0;
  }

  #findRun(count: number, start: number, isFree: (cluster: number) => boolean): number | undefined {
    const limit = Math.floor(this.#analysis.image.length / this.#analysis.image.layout.clusterSize);
    let run = 0;
    for (let cluster = start; cluster < limit; cluster++) {
      run = isFree(cluster) ? run + 1 : 0;
      if (run === count) return cluster - count + 1;
    }
    return undefined;
  }

  /** Clusters of blocks that nothing counts, since their entries are damaged: they are still in force. */
  #damagedBlocks(): Set<number> {
    const { table, image } = this.#analysis;
    const clusters = new Set<number>();
    for (const [block, fault] of table.faults.entries()) {
      if (fault === BLOCK_FAULT.none) continue;
      const first = table.blockOffset(block) / image.layout.clusterSize;
      clusters.add(Math.floor(first));
      clusters.add(Math.ceil(first));
    }
    return clusters;
  }
}
