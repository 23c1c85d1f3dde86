/**
 * NAME.partitions/N.raw: a window of a device. The kernel never caches what is read or written here (its
 * cache of NAME.raw is of the same bytes): reads come to the device, whose cache is dropped at the next
 * open after a write.
 */

import { TsimgfsError } from "../errors.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { Device } from "./device.ts";
import type { Capacity, FileNode, NodeAttributes, OpenFile, RangeChange } from "./node.ts";
import type { PartitionWindow } from "./partition-windows.ts";
import { PLAIN_HANDLE, type TruncatedFiles } from "./truncated-files.ts";

/** What a partition is part of. */
export interface PartitionProperties {
  readonly nodeid: number;
  readonly device: Device;
  /** For messages. */
  readonly path: string;
  /** Those of the device; undefined: it is read-only. */
  readonly truncated: TruncatedFiles | undefined;
  /** Whether the disk's table still has this partition. */
  readonly isCurrent: () => boolean;
  /** Extended attributes; made when they are asked for. */
  readonly xattrs: () => ReadonlyMap<string, string>;
}

export class Partition implements FileNode {
  readonly kind = "file";
  readonly nodeid: number;
  readonly isWritable: boolean;
  readonly #properties: PartitionProperties;
  readonly #device: Device;
  readonly #number: number;
  readonly #start: number;
  readonly #size: number;

  constructor(properties: PartitionProperties, window: PartitionWindow) {
    this.nodeid = properties.nodeid;
    this.isWritable = properties.device.isWritable;
    this.#properties = properties;
    this.#device = properties.device;
    this.#number = window.number;
    this.#start = window.start;
    this.#size = window.size;
  }

  attributes(): NodeAttributes {
    const device = this.#device.attributes();
    // Its share of what the image occupies: tools look for holes where that is less than the size.
    const blocks = Math.floor(device.blocks * Math.min(1, this.#size / device.size));
    return { ...device, nodeid: this.nodeid, size: this.#size, blocks };
  }

  capacity(): Capacity {
    return { blockSize: this.#device.capacity().blockSize, size: this.#size };
  }

  xattrs(): ReadonlyMap<string, string> {
    return this.#properties.xattrs();
  }

  setXattr(): boolean {
    return false;
  }

  open({ truncates }: { truncates: boolean }): OpenFile {
    const { isCurrent, truncated } = this.#properties;
    if (!isCurrent()) throw this.#error("ESTALE", "is not in the partition table any more");
    // Nothing is cached of it but what was mapped.
    const file = { ...this.#device.open({ direct: true, truncates: false }), keepCache: false };
    if (!truncates || truncated === undefined) return file;
    return { ...file, handle: truncated.open(this.#start) };
  }

  release(handle: number): void {
    this.#device.release(handle);
  }

  read(
    handle: number,
    offset: number,
    length: number,
    target: NativeBuffer,
    start: number,
  ): number {
    const count = Math.max(0, Math.min(length, this.#size - offset));
    return this.#device.read(handle, this.#start + offset, count, target, start);
  }

  write(
    handle: number,
    offset: number,
    length: number,
    source: NativeBuffer,
    start: number,
  ): number {
    const count = Math.min(length, this.#size - offset);
    if (count <= 0) return length === 0 ? 0 : -1;
    this.#refuseBeyondDisk(offset + count);
    try {
      return this.#device.write(handle, this.#start + offset, count, source, start);
    } finally {
      this.#properties.truncated?.markStale();
    }
  }

  allocateRange(offset: number, length: number, what: RangeChange, keepsSize: boolean): boolean {
    const isPast = offset + length > this.#size;
    if (isPast && !(keepsSize && what !== "allocate")) return false;
    const count = Math.min(length, this.#size - offset);
    if (count <= 0) return true;
    this.#refuseBeyondDisk(offset + count);
    try {
      return this.#device.allocateRange(this.#start + offset, count, what, true);
    } finally {
      this.#properties.truncated?.markStale();
    }
  }

  sync(): void {
    this.#device.sync();
  }

  setSize(handle: number, size: number): boolean {
    if (handle === PLAIN_HANDLE || size > this.#size) return size === this.#size;
    this.#refuseBeyondDisk(size);
    try {
      return this.#device.setSize(handle, this.#start + size);
    } finally {
      this.#properties.truncated?.markStale();
    }
  }

  seek(offset: number, what: "data" | "hole"): number {
    if (offset >= this.#size) return -1;
    const found = this.#device.seek(this.#start + offset, what);
    if (found < 0) return -1;
    const within = Math.min(found - this.#start, this.#size);
    // The end of the file is a hole, and not data.
    return what === "data" && within === this.#size ? -1 : within;
  }

  /** A disk that can grow must not do so for a window that it had when it was larger. */
  #refuseBeyondDisk(end: number): void {
    if (this.#start + end > this.#device.currentSize()) {
      throw this.#error("EIO", "lies past the end of the disk, which was made smaller");
    }
  }

  #error(code: "EIO" | "ESTALE", reason: string): TsimgfsError {
    return new TsimgfsError(code, this.#properties.path, `partition ${this.#number} ${reason}`);
  }
}
