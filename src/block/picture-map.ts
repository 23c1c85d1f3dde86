/**
 * The disk and the image file as two maps of cells, from one walk over the disk's mapping and one over all
 * that the file's structures refer to. Memory does not grow with the disk, but by a byte for each cluster in
 * the file that is in use.
 */

import { UnsupportedError } from "../errors.ts";
import { EXTENT, Extent, type FormatImage, NO_OFFSET } from "../formats/driver.ts";
import type { HostRun, Storage } from "../storage/storage.ts";
import type { BackingChain } from "./backing-chain.ts";
import { BlockStatus, BlockStatusWalker } from "./block-status.ts";
import { CLUSTER_USE, type ClusterUse, ClusterUses, type UseRun } from "./cluster-uses.ts";
import { type CellClass, PictureCells } from "./picture-cells.ts";
import { markReferences } from "./referenced-clusters.ts";

/** Our limit of extents: 16 TiB of clusters of 64 KiB, each one apart. */
const EXTENTS_MAX = 2 ** 28;

/**
 * The most that one byte of a table says, extents: 32 sub-clusters have an entry of 16 bytes. Tables that are
 * named again and again say more, and could keep the walk going for days.
 */
const EXTENTS_PER_BYTE = 2;

/** Cells of raw images are multiples of this, bytes: file systems have no smaller holes. */
const RAW_UNIT = 4096;

export interface PictureMap {
  /** As the user names it. */
  readonly path: string;
  readonly format: string;
  /** Bytes; undefined where the format has no clusters. */
  readonly clusterSize: number | undefined;
  /** Guest offsets. */
  readonly disk: PictureCells;
  /** Host offsets of the image file. */
  readonly file: PictureCells;
  /** Host offsets of the external data file; undefined: there is none. */
  readonly dataFile: PictureCells | undefined;
}

/** A byte of a file that is not metadata, by the use of its cluster. */
const CLASS_OF_USE: Readonly<Record<ClusterUse, CellClass>> = {
  [CLUSTER_USE.none]: "free",
  [CLUSTER_USE.leaked]: "leaked",
  [CLUSTER_USE.snapshot]: "snapshot",
  [CLUSTER_USE.zero]: "zero",
  [CLUSTER_USE.data]: "data",
  [CLUSTER_USE.compressed]: "compressed",
  [CLUSTER_USE.metadata]: "metadata",
};

/**
 * Look at a whole image.
 *
 * @param cellsMax cells of each map, at the most
 * @throws {TsimgfsError} its tables cannot be followed
 */
export function readPictureMap(chain: BackingChain, cellsMax: number): PictureMap {
  const { image } = chain;
  const isRaw = image.format === "raw";
  const unit = isRaw ? RAW_UNIT : image.clusterSize;
  const file = new FileMap(image.storage, unit, cellsMax);
  const dataFile =
    image.dataStorage === image.storage
      ? undefined
      : new FileMap(image.dataStorage, unit, cellsMax);
  const disk = new PictureCells(image.virtualSize, unit, cellsMax);
  markReferences(image, file.uses);
  new DiskWalk(chain, disk, dataFile ?? file).run();
  return {
    path: image.storage.path,
    format: image.format,
    clusterSize: isRaw ? undefined : image.clusterSize,
    disk,
    file: file.finish(),
    dataFile: dataFile?.finish(),
  };
}

/** A file under way: what its clusters are used for, and the cells that are made of it in the end. */
class FileMap {
  readonly uses: ClusterUses;
  readonly cells: PictureCells;
  readonly #storage: Storage;
  readonly #unit: number;

  /** @param unit bytes of a cluster */
  constructor(storage: Storage, unit: number, cellsMax: number) {
    this.#storage = storage;
    this.#unit = unit;
    this.uses = new ClusterUses(storage.path);
    this.cells = new PictureCells(storage.length, unit, cellsMax);
  }

  /** Note what a range of the disk has here; what is past the end of the file is not there. */
  mark(offset: number, length: number, use: ClusterUse): void {
    const end = Math.min(offset + length, this.#storage.length);
    if (end <= offset) return;
    const first = Math.floor(offset / this.#unit);
    this.uses.mark(first, Math.ceil(end / this.#unit) - first, use);
  }

  finish(): PictureCells {
    const { length } = this.#storage;
    const run: UseRun = { use: CLUSTER_USE.none, length: 0 };
    const clusters = Math.ceil(length / this.#unit);
    for (let cluster = 0; cluster < clusters; cluster += run.length) {
      this.uses.runAt(cluster, clusters - cluster, run);
      const start = cluster * this.#unit;
      const end = Math.min(length, (cluster + run.length) * this.#unit);
      if (run.use === CLUSTER_USE.metadata) this.cells.add("metadata", start, end - start);
      else this.#addByHost(start, end, CLASS_OF_USE[run.use]);
    }
    return this.cells;
  }

  readonly #host: HostRun = { isData: true, length: 0 };
  #hostStart = 0;

  #addByHost(start: number, end: number, cellClass: CellClass): void {
    const host = this.#host;
    for (let at = start; at < end; ) {
      if (at >= this.#hostStart + host.length) {
        this.#storage.hostRun(at, host);
        this.#hostStart = at;
      }
      const next = Math.min(end, this.#hostStart + host.length);
      this.cells.add(host.isData ? cellClass : "hole", at, next - at);
      at = next;
    }
  }
}

/** The walk over the disk, from its first byte to its last. */
class DiskWalk {
  readonly #chain: BackingChain;
  readonly #image: FormatImage;
  readonly #disk: PictureCells;
  readonly #file: FileMap;
  readonly #walker: BlockStatusWalker;
  readonly #extent = new Extent();
  readonly #status = new BlockStatus();
  /** Where the allocated extent before this one ends in the file, or NO_OFFSET. */
  #hostEnd: number = NO_OFFSET;
  /** How far it is behind its place on the disk, bytes; NaN: it is compressed. */
  #distance = 0;

  /** @param file where the disk's data is */
  constructor(chain: BackingChain, disk: PictureCells, file: FileMap) {
    this.#chain = chain;
    this.#image = chain.image;
    this.#disk = disk;
    this.#file = file;
    this.#walker = new BlockStatusWalker(chain);
  }

  run(): void {
    const { length } = this.#disk;
    const extent = this.#extent;
    const limit = this.#extentsMax();
    let extents = 0;
    for (let offset = 0; offset < length; ) {
      this.#image.mapExtent(offset, length - offset, extent);
      offset += this.#addExtent(offset);
      if (++extents > limit) {
        const reason = `has more than ${limit} extents, too many for a picture`;
        throw new UnsupportedError(this.#image.storage.path, reason);
      }
    }
  }

  #extentsMax(): number {
    const bytes = this.#chain.images.reduce((sum, { storage, dataStorage }) => {
      return sum + storage.length + (dataStorage === storage ? 0 : dataStorage.length);
    }, 0);
    return Math.min(EXTENTS_MAX, bytes * EXTENTS_PER_BYTE);
  }

  /** Returns how much of the extent was taken, bytes. */
  #addExtent(offset: number): number {
    const extent = this.#extent;
    let length = extent.length;
    let cellClass: CellClass = "zero";
    let use: ClusterUse = CLUSTER_USE.zero;
    if (extent.kind === EXTENT.unallocated) {
      cellClass = "unallocated";
      if (this.#chain.images.length > 1) {
        const status = this.#statusAt(offset, length);
        if (status.present) cellClass = "backing";
        length = status.length;
      }
    } else if (extent.kind === EXTENT.data) {
      cellClass = "data";
      use = CLUSTER_USE.data;
      if (this.#image.mayHaveHostHoles()) {
        const status = this.#statusAt(offset, length);
        if (status.zero) cellClass = "hole";
        length = status.length;
      }
    } else if (extent.kind === EXTENT.compressed) {
      cellClass = "compressed";
      use = CLUSTER_USE.compressed;
    }
    this.#disk.add(cellClass, offset, length);
    if (extent.hostOffset !== NO_OFFSET) {
      const isCompressed = extent.kind === EXTENT.compressed;
      const hostLength = isCompressed ? extent.compressedBytes : length;
      this.#file.mark(extent.hostOffset, hostLength, use);
      this.#followOrder(offset, hostLength);
    }
    return length;
  }

  #statusAt(offset: number, length: number): BlockStatus {
    this.#walker.statusAt(offset, length, this.#status);
    return this.#status;
  }

  #followOrder(offset: number, hostLength: number): void {
    const { kind, hostOffset } = this.#extent;
    const distance = kind === EXTENT.compressed ? Number.NaN : hostOffset - offset;
    // The length of a compressed cluster is an upper bound, and small ones share a cluster of the file.
    const follows =
      Number.isNaN(distance) || Number.isNaN(this.#distance)
        ? Math.abs(hostOffset - this.#hostEnd) < this.#image.clusterSize
        : hostOffset === this.#hostEnd || distance === this.#distance;
    if (this.#hostEnd !== NO_OFFSET && !follows) {
      this.#disk.addBreak(offset);
      this.#file.cells.addBreak(hostOffset);
    }
    this.#hostEnd = hostOffset + hostLength;
    this.#distance = distance;
  }
}
