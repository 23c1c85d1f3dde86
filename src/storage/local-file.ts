/** Images in local files and block devices. The descriptor may be used by several threads at once. */

import fs from "node:fs";
import { constants } from "node:os";
import { StorageError } from "../errors.ts";
import { errnoCode, errnoName, nodeErrorCode, nodeErrorName } from "../syscalls/errno-names.ts";
import { errno, fallocate, fdatasync, ftruncate, lseek, pread, pwrite } from "../syscalls/libc.ts";
import { type NativeBuffer, PAGE_SIZE } from "../syscalls/native-buffer.ts";
import { ZEROS, ZEROS_SIZE } from "../syscalls/zeros.ts";
import type { HostRun, WritableStorage } from "./storage.ts";

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

/** What another thread needs to use the same open file: plain data for structured clone. */
export interface SharedFile {
  readonly fd: number;
  readonly path: string;
  readonly length: number;
  /** A regular file: its length can change. */
  readonly resizable: boolean;
}

export type OpenMode = "read-only" | "read-write";

export class LocalFile implements WritableStorage {
  readonly fd: number;
  readonly path: string;
  readonly length: number;
  readonly resizable: boolean;
  readonly #onPunch: ((bytes: number) => void) | undefined;

  /** @param onPunch told of the bytes in which a hole was punched */
  constructor(file: SharedFile, onPunch?: (bytes: number) => void) {
    this.fd = file.fd;
    this.path = file.path;
    this.length = file.length;
    this.resizable = file.resizable;
    this.#onPunch = onPunch;
  }

  /**
   * Open a regular file or a block device.
   *
   * @throws {StorageError} it does not exist, may not be read (or written), or is something else
   */
  static open(path: string, mode: OpenMode): LocalFile {
    const access = mode === "read-only" ? fs.constants.O_RDONLY : fs.constants.O_RDWR;
    // O_NONBLOCK: opening a FIFO must not wait for a writer. It has no effect on files.
    return LocalFile.#openWith(path, access | fs.constants.O_NONBLOCK);
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
    let fd: number;
    try {
      fd = fs.openSync(path, flags, 0o644);
    } catch (cause) {
      const code = nodeErrorCode(cause);
      throw new StorageError(
        code,
        path,
        OPEN_REASONS[code] ?? `open failed: ${nodeErrorName(cause)}`,
        { cause },
      );
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
      return new LocalFile({ fd, path, length, resizable: stats.isFile() });
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  share(): SharedFile {
    return { fd: this.fd, path: this.path, length: this.length, resizable: this.resizable };
  }

  /** Close the descriptor: for the one that opened it, after all threads are done. */
  close(): void {
    fs.closeSync(this.fd);
  }

  readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    let done = 0;
    while (done < length) {
      const count = pread(this.fd, target.address + start + done, length - done, offset + done);
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
      const count = pwrite(this.fd, source.address + start + done, length - done, offset + done);
      if (count > 0) done += count;
      else if (count === 0 || errno() !== EINTR) {
        throw callFailed(this.path, "write", offset + done);
      }
    }
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
  }

  sync(): void {
    while (fdatasync(this.fd) < 0) {
      if (errno() !== EINTR) throw callFailed(this.path, "fdatasync", 0);
    }
  }

  /** False if the host has no such thing. */
  #fallocate(mode: number, offset: number, length: number): boolean {
    while (fallocate(this.fd, mode, offset, length) < 0) {
      const number = errno();
      if (number === EOPNOTSUPP || number === ENOSYS || number === ENODEV) return false;
      if (number !== EINTR) throw callFailed(this.path, "fallocate", offset);
    }
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

const OPEN_REASONS: Readonly<Partial<Record<string, string>>> = {
  ENOENT: "no such file",
  EACCES: "permission denied",
  EISDIR: "is a directory",
  ENOTDIR: "a part of the path is not a directory",
  ELOOP: "too many symbolic links",
};

function callFailed(path: string, call: string, offset: number): StorageError {
  const number = errno();
  return new StorageError(
    errnoCode(number),
    path,
    `${call} at offset 0x${offset.toString(16)} failed: ${errnoName(number)}`,
    { offset },
  );
}
