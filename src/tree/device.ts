/** A device: a disk image as a flat file. */

import type { Disk } from "../block/disk.ts";
import { TsimgfsError } from "../errors.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import { COUNTER, count, countError, countRequest, OPERATION } from "../threads/counters.ts";
import type { DeviceOpens } from "./device-opens.ts";
import type { Capacity, FileNode, NodeAttributes, OpenFile, RangeChange, Xattrs } from "./node.ts";
import { PLAIN_HANDLE, type TruncatedFiles } from "./truncated-files.ts";

/** The unit of st_blocks, bytes. */
const STAT_BLOCK_SIZE = 512;
/** Reads of this size cost least: what cp and cat choose their buffers by. */
const PREFERRED_READ = 1024 * 1024;
/** Block size for statfs of images that have no clusters. */
const PAGE_SIZE = 4096;
/** Size and times of a read-only device never change; what it occupies hardly does. */
const READ_ONLY_VALID_SECONDS = 60;
/** What a device occupies that is written to changes all the time. */
const WRITABLE_VALID_SECONDS = 1;

/** What changes of ranges are counted as. */
const OPERATION_OF = {
  punch: OPERATION.discard,
  zero: OPERATION.zero,
  allocate: OPERATION.allocate,
} as const satisfies Record<RangeChange, number>;

/** What a thread does around its reply to a request. */
export interface AfterReply {
  /** Stores what it has fetched for the request, when that is answered. */
  disk: Disk | undefined;
  /** The node whose attributes the request has changed, which the kernel is told before; 0: none. */
  staleNodeid: number;
  /** Lets the kernel forget all pages of a node, which nobody has open; undefined: it keeps none. */
  dropPages: ((nodeid: number) => void) | undefined;
}

/** What the files of an image say on the host. */
export interface HostState {
  /** Bytes that they occupy. */
  readonly allocatedSize: number;
  /** Seconds since the epoch. */
  readonly modifiedAt: number;
}

/** What a device is, apart from its disk. */
export interface DeviceProperties {
  readonly nodeid: number;
  /** Bytes; of a disk that can grow, at first. */
  readonly virtualSize: number;
  readonly clusterSize: number;
  readonly isWritable: boolean;
  readonly isGrowable: boolean;
  /** Attaches to the image when the device is first used: snapshots may be many. */
  readonly attach: () => Disk;
  readonly hostState: () => HostState;
  /** Files that were opened with O_TRUNC; undefined: the device is read-only. */
  readonly truncated: TruncatedFiles | undefined;
  /** Extended attributes; made when they are asked for. */
  readonly xattrs: () => Xattrs;
  /** What is done with the values that extended attributes are set to. */
  readonly commands: ReadonlyMap<string, (value: string) => void>;
  /** How often it is open; undefined: it never changes as a whole. */
  readonly opens: DeviceOpens | undefined;
  /** This thread's counters. */
  readonly counters: Float64Array;
  /** What this thread is to do when it has replied. */
  readonly afterReply: AfterReply;
}

export class Device implements FileNode {
  readonly kind = "file";
  readonly nodeid: number;
  readonly isWritable: boolean;
  readonly #properties: DeviceProperties;
  readonly #counters: Float64Array;
  #attached: Disk | undefined;
  /** Bytes; looked up again where the disk can grow, or has changed as a whole. */
  #size: number;
  #generation = 0;

  constructor(properties: DeviceProperties) {
    this.nodeid = properties.nodeid;
    this.isWritable = properties.isWritable;
    this.#properties = properties;
    this.#counters = properties.counters;
    this.#size = properties.virtualSize;
  }

  attributes(): NodeAttributes {
    const { isWritable, hostState } = this.#properties;
    const { allocatedSize, modifiedAt } = hostState();
    const size = this.currentSize();
    return {
      nodeid: this.nodeid,
      isDirectory: false,
      isWritable,
      size,
      // Tools look for holes only where a file occupies less than its size.
      blocks: Math.floor(Math.min(allocatedSize, size) / STAT_BLOCK_SIZE),
      blockSize: PREFERRED_READ,
      modifiedAt,
      links: 1,
      validSeconds: isWritable ? WRITABLE_VALID_SECONDS : READ_ONLY_VALID_SECONDS,
    };
  }

  capacity(): Capacity {
    return {
      blockSize: Math.max(this.#properties.clusterSize, PAGE_SIZE),
      size: this.currentSize(),
    };
  }

  xattrs(): Xattrs {
    return this.#properties.xattrs();
  }

  setXattr(name: string, value: string): boolean {
    const command = this.#properties.commands.get(name);
    if (command === undefined) return false;
    const disk = this.#disk();
    const { path } = disk.chain.image.storage;
    if (!this.isWritable) throw new TsimgfsError("EPERM", path, "is read-only here");
    const { generation } = disk;
    command(value);
    // The size may be another one.
    if (disk.generation !== generation) this.#properties.afterReply.staleNodeid = this.nodeid;
    return true;
  }

  open({ direct, truncates }: { direct: boolean; truncates: boolean }): OpenFile {
    count(this.#counters, COUNTER.opens, 1);
    this.#properties.opens?.add();
    const { truncated } = this.#properties;
    const handle = truncates && truncated !== undefined ? truncated.open() : PLAIN_HANDLE;
    // The image is locked: nobody changes it but through here, so what the kernel has cached stays true. To drop it for
    // nothing is no loss of speed only: a page of a write(2) that is under way goes, too, and may be read again too early.
    const keepCache = direct || truncated?.takeStale() !== true;
    return { handle, directIo: direct, keepCache };
  }

  release(handle: number): void {
    this.#properties.truncated?.release(handle);
    this.#properties.opens?.remove();
  }

  read(
    _handle: number,
    offset: number,
    length: number,
    target: NativeBuffer,
    start: number,
  ): number {
    const startedAt = performance.now();
    let bytes: number;
    try {
      bytes = Math.max(0, Math.min(length, this.currentSize() - offset));
      if (bytes > 0) {
        const disk = this.#disk();
        if (disk.readFirst(offset, bytes, target, start)) this.#properties.afterReply.disk = disk;
      }
    } catch (error) {
      countError(this.#counters, OPERATION.read, startedAt);
      throw error;
    }
    countRequest(this.#counters, OPERATION.read, startedAt, bytes);
    return bytes;
  }

  write(
    handle: number,
    offset: number,
    length: number,
    source: NativeBuffer,
    start: number,
  ): number {
    const startedAt = performance.now();
    let bytes = length;
    try {
      if (offset + length > this.currentSize() && !this.#growTo(offset + length)) {
        bytes = this.#size - offset;
        if (bytes <= 0) {
          if (length === 0) return 0;
          countError(this.#counters, OPERATION.write, startedAt);
          return -1;
        }
      }
      this.#properties.truncated?.advance(handle, offset, offset + bytes, this.#zero);
      this.#disk().write(offset, bytes, source, start);
    } catch (error) {
      countError(this.#counters, OPERATION.write, startedAt);
      throw error;
    }
    countRequest(this.#counters, OPERATION.write, startedAt, bytes);
    return bytes;
  }

  allocateRange(offset: number, length: number, what: RangeChange, keepsSize: boolean): boolean {
    const startedAt = performance.now();
    const operation = OPERATION_OF[what];
    let bytes: number;
    try {
      bytes = this.#changeRange(offset, length, what, keepsSize);
    } catch (error) {
      countError(this.#counters, operation, startedAt);
      throw error;
    }
    if (bytes < 0) countError(this.#counters, operation, startedAt);
    else countRequest(this.#counters, operation, startedAt, bytes);
    return bytes >= 0;
  }

  /** As `allocateRange`. Returns the bytes that are in the device; -1: it reaches past the end. */
  #changeRange(offset: number, length: number, what: RangeChange, keepsSize: boolean): number {
    const isPast = offset + length > this.currentSize();
    // Space past the end cannot be kept for later: a device has none.
    if (isPast && keepsSize && what === "allocate") return -1;
    if (isPast && !keepsSize && !this.#growTo(offset + length)) return -1;
    const bytes = Math.min(length, this.#size - offset);
    if (bytes <= 0) return 0;
    if (what === "allocate") this.#disk().preallocate(offset, bytes);
    else this.#disk().writeZeroes(offset, bytes, { unmap: what === "punch" });
    return bytes;
  }

  sync(): void {
    const startedAt = performance.now();
    try {
      this.#disk().flush();
    } catch (error) {
      countError(this.#counters, OPERATION.flush, startedAt);
      throw error;
    }
    countRequest(this.#counters, OPERATION.flush, startedAt, 0);
  }

  setSize(handle: number, size: number): boolean {
    const { truncated, isGrowable } = this.#properties;
    const current = this.currentSize();
    const isPlain = handle === PLAIN_HANDLE;
    if (isPlain ? size !== current : size > current) {
      if (!isGrowable) return false;
      this.#disk().resize(size);
    }
    // Who has emptied the file takes this for its size, all zeros from where he stopped to write.
    truncated?.advance(handle, size, size, this.#zero);
    return true;
  }

  seek(offset: number, what: "data" | "hole"): number {
    const startedAt = performance.now();
    let found: number;
    let size: number;
    try {
      size = this.currentSize();
      found = offset >= size ? size : this.#disk().seek(offset, what);
    } catch (error) {
      countError(this.#counters, OPERATION.seek, startedAt);
      throw error;
    }
    countRequest(this.#counters, OPERATION.seek, startedAt, 0);
    // The end of the file is a hole, and not data; there is nothing behind it.
    return offset >= size || (what === "data" && found >= size) ? -1 : found;
  }

  readonly #zero = (offset: number, length: number): void => {
    this.#disk().writeZeroes(offset, length, { unmap: true });
  };

  #disk(): Disk {
    this.#attached ??= this.#properties.attach();
    return this.#attached;
  }

  /** Bytes, now: another thread may have changed the size. */
  currentSize(): number {
    if (!this.isWritable) return this.#size;
    const { generation } = this.#disk();
    if (this.#properties.isGrowable || generation !== this.#generation) {
      this.#generation = generation;
      this.#size = this.#disk().currentSize();
    }
    return this.#size;
  }

  #growTo(size: number): boolean {
    if (!this.#properties.isGrowable) return false;
    this.#disk().resize(size);
    this.#size = this.#disk().currentSize();
    return true;
  }
}
