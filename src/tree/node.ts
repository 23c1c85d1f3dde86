/** What a transport needs of the things in the tree: files and directories with fixed node ids. */

import type { NativeBuffer } from "../syscalls/native-buffer.ts";

/** What stat(2) tells of a node; sizes in bytes. */
export interface NodeAttributes {
  readonly nodeid: number;
  readonly isDirectory: boolean;
  readonly isWritable: boolean;
  readonly size: number;
  /** Units of 512 bytes. */
  readonly blocks: number;
  /** The preferred size of reads. */
  readonly blockSize: number;
  /** Seconds since the epoch, with a fraction. */
  readonly modifiedAt: number;
  readonly links: number;
  /** How long the kernel may keep these attributes, seconds. */
  readonly validSeconds: number;
}

/** What statfs(2) tells of the place of a node. */
export interface Capacity {
  /** Bytes: of a device, its cluster size, which loop devices use as discard granularity. */
  readonly blockSize: number;
  /** Bytes. */
  readonly size: number;
}

/** What a transport must know of a file that was opened. */
export interface OpenFile {
  readonly handle: number;
  /** Every read comes here; the page cache of the kernel is bypassed. */
  readonly directIo: boolean;
  /** The kernel may keep what it has cached of the file since it was last open. */
  readonly keepCache: boolean;
}

/** Extended attributes: of a name its value. */
export interface Xattrs {
  get(name: string): string | undefined;
  keys(): Iterable<string>;
}

export type RangeChange = "punch" | "zero" | "allocate";

export interface FileNode {
  readonly kind: "file";
  readonly nodeid: number;
  readonly isWritable: boolean;
  attributes(): NodeAttributes;
  capacity(): Capacity;
  xattrs(): Xattrs;
  /**
   * Set an extended attribute. Returns false if it is none that can be set.
   *
   * @throws {TsimgfsError} the value is none that it can have
   */
  setXattr(name: string, value: string): boolean;
  /** @param options.truncates it is opened with O_TRUNC: see truncated-files.ts */
  open(options: { direct: boolean; truncates: boolean }): OpenFile;
  release(handle: number): void;
  /**
   * Read into `target.bytes[start]` on.
   *
   * @returns bytes read; less than `length` only at the end of the file
   */
  read(handle: number, offset: number, length: number, target: NativeBuffer, start: number): number;
  /**
   * Write from `source.bytes[start]` on.
   *
   * @param handle of an open file; PLAIN_HANDLE for what was mapped, whose file nobody knows
   * @returns bytes written, less than `length` only at the end of the device; -1: past the end
   */
  write(
    handle: number,
    offset: number,
    length: number,
    source: NativeBuffer,
    start: number,
  ): number;
  /**
   * Change what a range takes on the host: `punch` and `zero` let it read as zeros, the latter keeping
   * its space; `allocate` gives it space.
   *
   * @param keepsSize what lies past the end is ignored; else the device would have to grow
   * @returns false: it reaches past the end
   */
  allocateRange(offset: number, length: number, what: RangeChange, keepsSize: boolean): boolean;
  /** Make durable what was written. */
  sync(): void;
  /**
   * Set the size. Returns false if that is not allowed.
   *
   * @param handle of an open file, or PLAIN_HANDLE
   */
  setSize(handle: number, size: number): boolean;
  /**
   * SEEK_DATA and SEEK_HOLE.
   *
   * @returns the offset, or -1 if there is none (ENXIO)
   */
  seek(offset: number, what: "data" | "hole"): number;
}

export interface DirectoryEntry {
  readonly name: string;
  readonly node: TreeNode;
}

export interface DirectoryNode {
  readonly kind: "directory";
  readonly nodeid: number;
  readonly parent: DirectoryNode | undefined;
  attributes(): NodeAttributes;
  capacity(): Capacity;
  xattrs(): Xattrs;
  lookup(name: string): TreeNode | undefined;
  /** Its entries never change: whoever knows them may keep them. */
  readonly isFixed: boolean;
  /** Find out what the entries are now: comes before `lookup` or the first `entryAt` of a request. */
  refresh(): void;
  /** The entries without `.` and `..`, in the same order until `refresh`; undefined after the last one. */
  entryAt(index: number): DirectoryEntry | undefined;
}

export type TreeNode = FileNode | DirectoryNode;
