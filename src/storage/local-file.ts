/** Images in local files and block devices. The descriptor may be used by several threads at once. */

import fs from "node:fs";
import { constants } from "node:os";
import { StorageError, UnsupportedError } from "../errors.ts";
import { nodeErrorCode, nodeErrorName } from "../syscalls/errno-names.ts";
import {
  errno,
  fallocate,
  fdatasync,
  ftruncate,
  lseek,
  pread,
  pwrite,
  syncFileRange,
} from "../syscalls/libc.ts";
import { type NativeBuffer, PAGE_SIZE } from "../syscalls/native-buffer.ts";
import { ZEROS, ZEROS_SIZE } from "../syscalls/zeros.ts";
import { createTrace } from "../trace.ts";
import { CACHE_MANNERS, type CacheMode } from "./cache-mode.ts";
import { callFailed } from "./call-failed.ts";
import { FileRangeCopier } from "./file-range-copier.ts";
import { hasFixedLength } from "./fixed-length.ts";
import { openReason } from "./open-reason.ts";
import type { CallProgress, HostRun, ReadInterlude, Storage, WritableStorage } from "./storage.ts";

const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
/** The unit of st_blocks, bytes. */
const STAT_BLOCK_SIZE = 512;
const { EINTR, ENODEV, ENOSYS, ENXIO, EOPNOTSUPP } = constants.errno;

/** Modes of fallocate(2). */
const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;
/** A mode of sync_file_range(2): let dirty pages be on their way to the disk. */
const SYNC_FILE_RANGE_WRITE = 2;
/** Where files are written in bulk, writes from this many bytes on are on their way to the disk at once. */
const BULK_MIN = 256 * 1024;

/** What another thread needs to use the same open file: plain data for structured clone. */
export interface SharedFile {
  readonly fd: number;
  readonly path: string;
  readonly length: number;
  /** A regular file, and no device of ours that keeps its length. */
  readonly resizable: boolean;
  /** The same file, open with O_DIRECT: for whole pages. Undefined: all goes through the page cache. */
  readonly directFd?: number | undefined;
  /** What is written is left to the host: nobody waits until it is durable. */
  readonly isUnsafe?: boolean | undefined;
  /** What is written is let on its way to the disk at once: a `sync` at the end has little left to do. */
  readonly isBulk?: boolean | undefined;
}

/** How a file is used; default: as the host does it, for small and large requests alike. */
export interface FileUse {
  readonly cache?: CacheMode | undefined;
  /** Much is written, one large request after the other, and made durable at the end. */
  readonly bulk?: boolean | undefined;
}

/** Close the descriptors of a file: for the thread that opened it, after all others are done. */
export function closeFile({ fd, directFd }: SharedFile): void {
  if (directFd !== undefined) fs.closeSync(directFd);
  fs.closeSync(fd);
}

/** Who is told of what a thread does with a file. */
export interface FileHooks {
  /** Told of the bytes in which a hole was punched. */
  readonly onPunch?: ((bytes: number) => void) | undefined;
  /** Around reads. */
  readonly interlude?: ReadInterlude | undefined;
  /** Of this thread. */
  readonly progress?: CallProgress | undefined;
}

export type OpenMode = "read-only" | "read-write";

export class LocalFile implements WritableStorage {
  readonly fd: number;
  readonly path: string;
  readonly length: number;
  readonly resizable: boolean;
  /** -1: there is none. */
  readonly #directFd: number;
  readonly #isUnsafe: boolean;
  readonly #isBulk: boolean;
  readonly #onPunch: ((bytes: number) => void) | undefined;
  readonly #interlude: ReadInterlude | undefined;
  readonly #progress: CallProgress | undefined;
  #rangeCopier: FileRangeCopier | undefined;

  constructor(file: SharedFile, { onPunch, interlude, progress }: FileHooks = {}) {
    this.fd = file.fd;
    this.path = file.path;
    this.length = file.length;
    this.resizable = file.resizable;
    this.#directFd = file.directFd ?? -1;
    this.#isUnsafe = file.isUnsafe ?? false;
    this.#isBulk = file.isBulk ?? false;
    this.#onPunch = onPunch;
    this.#interlude = interlude;
    this.#progress = progress;
  }

  /**
   * Open a regular file or a block device.
   *
   * @throws {StorageError} it does not exist, may not be read (or written), is something else, or is on a
   *   file system that has no O_DIRECT, which the cache mode needs
   * @throws {UnsupportedError} it is longer than a number can say, 2^53 - 1 bytes
   */
  static open(path: string, mode: OpenMode, use: FileUse = {}): LocalFile {
    const { O_RDONLY, O_RDWR, O_DSYNC, O_NONBLOCK } = fs.constants;
    const { cache = "writeback", bulk = false } = use;
    const { direct, writesThrough, syncs } = CACHE_MANNERS[cache];
    const access = mode === "read-only" ? O_RDONLY : O_RDWR | (writesThrough ? O_DSYNC : 0);
    // O_NONBLOCK: opening a FIFO must not wait for a writer. It has no effect on files.
    const file = LocalFile.#openWith(path, access | O_NONBLOCK);
    if (cache === "writeback" && !bulk) return file;
    const directFd = direct ? file.#openDirect(access) : undefined;
    const isBulk = bulk && syncs && !direct && !writesThrough;
    return new LocalFile({ ...file.share(), directFd, isUnsafe: !syncs, isBulk });
  }

  /** The same file once more, past the page cache; this one is closed if that fails. */
  #openDirect(access: number): number {
    try {
      return fs.openSync(`/proc/self/fd/${this.fd}`, access | fs.constants.O_DIRECT);
    } catch (cause) {
      this.close();
      const reason = `cannot be opened with O_DIRECT, which cache modes none and directsync need: ${nodeErrorName(cause)}`;
      throw new StorageError(nodeErrorCode(cause), this.path, reason, { cause });
    }
  }

  /**
   * Open a file for writing, a new one if there is none. One that exists keeps what is in it.
   *
   * @throws {StorageError} it cannot be made, or something else than a regular file is there
   */
  static create(path: string): LocalFile {
    const flags = fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_NONBLOCK;
    return LocalFile.#openWith(path, flags);
  }

  static #openWith(path: string, flags: number): LocalFile {
    const isWritable = (flags & fs.constants.O_RDWR) !== 0;
    createTrace("open")("%s, %s", path, isWritable ? "read-write" : "read-only");
    let fd: number;
    try {
      fd = fs.openSync(path, flags, 0o644);
    } catch (cause) {
      const code = nodeErrorCode(cause);
      throw new StorageError(code, path, openReason(path, code, cause), { cause });
    }
    try {
      const stats = fs.fstatSync(fd);
      if (!stats.isFile() && !stats.isBlockDevice()) {
        const kind = stats.isDirectory()
          ? "a directory"
          : "neither a regular file nor a block device";
        throw new StorageError(stats.isDirectory() ? "EISDIR" : "EINVAL", path, `is ${kind}`);
      }
      const length = lseek(fd, 0, SEEK_END);
      if (length < 0) throw callFailed(path, "lseek", 0);
      if (!Number.isSafeInteger(length)) {
        throw new UnsupportedError(path, "its length is above the limit of 2^53 - 1");
      }
      const resizable = stats.isFile() && !(isWritable && hasFixedLength(fd));
      return new LocalFile({ fd, path, length, resizable });
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  share(): SharedFile {
    const { fd, path, length, resizable } = this;
    const directFd = this.#directFd < 0 ? undefined : this.#directFd;
    const isUnsafe = this.#isUnsafe;
    return { fd, path, length, resizable, directFd, isUnsafe, isBulk: this.#isBulk };
  }

  /** Close the descriptor: for the one that opened it, after all threads are done. */
  close(): void {
    closeFile(this.share());
  }

  /** The descriptor for some bytes: whole pages, in memory and in the file, go past the page cache if wanted. */
  #fdFor(address: number, length: number, offset: number): number {
    if (this.#directFd < 0) return this.fd;
    const isWhole =
      address % PAGE_SIZE === 0 && length % PAGE_SIZE === 0 && offset % PAGE_SIZE === 0;
    return isWhole ? this.#directFd : this.fd;
  }

  readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    const interlude = this.#interlude;
    if (interlude === undefined || !interlude.isOn) {
      this.#readAt(target, start, length, offset);
      return;
    }
    interlude.before();
    try {
      this.#readAt(target, start, length, offset);
    } finally {
      interlude.after();
    }
  }

  #readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    let done = 0;
    while (done < length) {
      const address = target.address + start + done;
      const fd = this.#fdFor(address, length - done, offset + done);
      const count = pread(fd, address, length - done, offset + done);
      this.#progress?.advance();
      if (count > 0) {
        done += count;
      } else if (count === 0) {
        target.bytes.fill(0, start + done, start + length);
        return;
      } else if (errno() !== EINTR) {
        throw callFailed(this.path, "read", offset + done);
      }
    }
  }

  writeAt(source: NativeBuffer, start: number, length: number, offset: number): void {
    let done = 0;
    while (done < length) {
      const address = source.address + start + done;
      const fd = this.#fdFor(address, length - done, offset + done);
      const count = pwrite(fd, address, length - done, offset + done);
      this.#progress?.advance();
      if (count > 0) done += count;
      else if (count === 0 || errno() !== EINTR) {
        throw callFailed(this.path, "write", offset + done);
      }
    }
    if (this.#isBulk) this.#startWriteBack(offset, length);
  }

  /** A file system that does not do it does it later. */
  #startWriteBack(offset: number, length: number): void {
    if (length >= BULK_MIN) syncFileRange(this.fd, offset, length, SYNC_FILE_RANGE_WRITE);
  }

  copyFrom(source: Storage, sourceOffset: number, offset: number, length: number): number {
    if (!(source instanceof LocalFile)) return 0;
    this.#rangeCopier ??= new FileRangeCopier();
    const done = this.#rangeCopier.copy(source.fd, sourceOffset, this.fd, offset, length, (at) => {
      throw callFailed(this.path, "copy_file_range", at);
    });
    if (this.#isBulk) this.#startWriteBack(offset, done);
    return done;
  }

  zeroAt(offset: number, length: number, space: "release" | "keep"): void {
    const count = Math.min(length, this.currentLength() - offset);
    if (count <= 0) return;
    const mode =
      (space === "release" ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
    if (!this.resizable) this.#zeroBlocks(offset, count, mode);
    else if (!this.#fallocate(mode, offset, count)) this.#writeZeros(offset, count);
  }

  /** Block devices zero whole blocks only. */
  #zeroBlocks(offset: number, length: number, mode: number): void {
    const end = offset + length;
    const first = Math.min(Math.ceil(offset / PAGE_SIZE) * PAGE_SIZE, end);
    const last = Math.max(Math.floor(end / PAGE_SIZE) * PAGE_SIZE, first);
    this.#writeZeros(offset, first - offset);
    if (last > first && !this.#fallocate(mode, first, last - first)) {
      this.#writeZeros(first, last - first);
    }
    this.#writeZeros(last, end - last);
  }

  #writeZeros(offset: number, length: number): void {
    for (let done = 0; done < length; done += ZEROS_SIZE) {
      this.writeAt(ZEROS, 0, Math.min(length - done, ZEROS_SIZE), offset + done);
    }
  }

  preallocate(offset: number, length: number): void {
    if (this.resizable) this.#fallocate(0, offset, length);
  }

  currentLength(): number {
    if (!this.resizable) return this.length;
    const length = lseek(this.fd, 0, SEEK_END);
    if (length < 0) throw callFailed(this.path, "lseek", 0);
    return length;
  }

  setLength(length: number): void {
    while (ftruncate(this.fd, length) < 0) {
      if (errno() !== EINTR) throw callFailed(this.path, "truncate", length);
    }
    this.#progress?.advance();
  }

  sync(): void {
    if (this.#isUnsafe) return;
    while (fdatasync(this.fd) < 0) {
      if (errno() !== EINTR) throw callFailed(this.path, "fdatasync", 0);
    }
    this.#progress?.advance();
  }

  /** False if the host has no such thing. */
  #fallocate(mode: number, offset: number, length: number): boolean {
    while (fallocate(this.fd, mode, offset, length) < 0) {
      const number = errno();
      if (number === EOPNOTSUPP || number === ENOSYS || number === ENODEV) return false;
      if (number !== EINTR) throw callFailed(this.path, "fallocate", offset);
    }
    this.#progress?.advance();
    if ((mode & FALLOC_FL_PUNCH_HOLE) !== 0) this.#onPunch?.(length);
    return true;
  }

  isHole(offset: number, length: number): boolean {
    const data = lseek(this.fd, offset, SEEK_DATA);
    return data < 0 ? errno() === ENXIO : data >= offset + length;
  }

  allocatedSize(): number {
    const stats = fs.fstatSync(this.fd);
    return stats.isFile() ? stats.blocks * STAT_BLOCK_SIZE : this.length;
  }

  hostRun(offset: number, out: HostRun): void {
    out.isData = true;
    out.length = Number.MAX_SAFE_INTEGER - offset;
    const data = lseek(this.fd, offset, SEEK_DATA);
    if (data < 0) {
      // ENXIO: only a hole is left. Other errors: no hole support, all is data.
      if (errno() === ENXIO) out.isData = false;
      return;
    }
    if (data > offset) {
      out.isData = false;
      out.length = data - offset;
      return;
    }
    const hole = lseek(this.fd, offset, SEEK_HOLE);
    if (hole > offset) out.length = hole - offset;
  }
}
