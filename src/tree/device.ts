/** A device: a disk image as a flat file. */

import type { BackingChain } from "../block/backing-chain.ts";
import { BlockStatusWalker } from "../block/block-status.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import { COUNTER } from "../threads/counters.ts";
import type { Capacity, FileNode, NodeAttributes, OpenFile } from "./node.ts";

/** The unit of st_blocks, bytes. */
const STAT_BLOCK_SIZE = 512;
/** Reads of this size cost least: what cp and cat choose their buffers by. */
const PREFERRED_READ = 1024 * 1024;
/** Block size for statfs of images that have no clusters. */
const PAGE_SIZE = 4096;
/** Size and times of a read-only device never change; what it occupies hardly does. */
const ATTRIBUTES_VALID_SECONDS = 60;

/** What a device is, apart from its chain. */
export interface DeviceProperties {
  readonly nodeid: number;
  /** Bytes. */
  readonly virtualSize: number;
  readonly clusterSize: number;
  /** Attaches to the image when the device is first used: snapshots may be many. */
  readonly attach: () => BackingChain;
  /** Bytes that the image's files occupy. */
  readonly allocatedSize: number;
  /** Seconds since the epoch. */
  readonly modifiedAt: number;
  /** Extended attributes; made when they are asked for. */
  readonly xattrs: () => ReadonlyMap<string, string>;
  /** This thread's counters. */
  readonly counters: Float64Array;
}

export class Device implements FileNode {
  readonly kind = "file";
  readonly nodeid: number;
  readonly #properties: DeviceProperties;
  readonly #counters: Float64Array;
  readonly #size: number;
  #chain: BackingChain | undefined;
  #walker: BlockStatusWalker | undefined;

  constructor(properties: DeviceProperties) {
    this.nodeid = properties.nodeid;
    this.#properties = properties;
    this.#counters = properties.counters;
    this.#size = properties.virtualSize;
  }

  attributes(): NodeAttributes {
    // Tools look for holes only where a file occupies less than its size.
    const blocks = Math.floor(
      Math.min(this.#properties.allocatedSize, this.#size) / STAT_BLOCK_SIZE,
    );
    return {
      nodeid: this.nodeid,
      isDirectory: false,
      size: this.#size,
      blocks,
      blockSize: PREFERRED_READ,
      modifiedAt: this.#properties.modifiedAt,
      links: 1,
      validSeconds: ATTRIBUTES_VALID_SECONDS,
    };
  }

  capacity(): Capacity {
    return { blockSize: Math.max(this.#properties.clusterSize, PAGE_SIZE), size: this.#size };
  }

  xattrs(): ReadonlyMap<string, string> {
    return this.#properties.xattrs();
  }

  open({ direct }: { direct: boolean }): OpenFile {
    this.#count(COUNTER.opens, 1);
    // The image is locked: nobody changes it, so what the kernel has cached stays true.
    return { handle: 0, directIo: direct, keepCache: !direct };
  }

  release(): void {
    // Handles of devices carry no state.
  }

  read(
    _handle: number,
    offset: number,
    length: number,
    target: NativeBuffer,
    start: number,
  ): number {
    const count = Math.max(0, Math.min(length, this.#size - offset));
    this.#count(COUNTER.reads, 1);
    if (count === 0) return 0;
    try {
      this.#chain ??= this.#properties.attach();
      this.#chain.read(offset, count, target, start);
    } catch (error) {
      this.#count(COUNTER.readErrors, 1);
      throw error;
    }
    this.#count(COUNTER.readBytes, count);
    return count;
  }

  seek(offset: number, what: "data" | "hole"): number {
    this.#count(COUNTER.seeks, 1);
    if (offset >= this.#size) return -1;
    this.#chain ??= this.#properties.attach();
    this.#walker ??= new BlockStatusWalker(this.#chain);
    const found = this.#walker.seek(offset, what);
    // The end of the file is a hole, and not data.
    return what === "data" && found >= this.#size ? -1 : found;
  }

  #count(counter: number, amount: number): void {
    this.#counters[counter] = (this.#counters[counter] ?? 0) + amount;
  }
}
