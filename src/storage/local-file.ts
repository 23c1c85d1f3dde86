/** Images in local files and block devices. The descriptor may be used by several threads at once. */

import fs from "node:fs";
import { StorageError } from "../errors.ts";
import { errnoCode, errnoName, nodeErrorCode, nodeErrorName } from "../syscalls/errno-names.ts";
import { errno, lseek, pread } from "../syscalls/libc.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { HostRun, Storage } from "./storage.ts";

const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
/** The unit of st_blocks, bytes. */
const STAT_BLOCK_SIZE = 512;
const EINTR = 4;
const ENXIO = 6;

/** What another thread needs to use the same open file: plain data for structured clone. */
export interface SharedFile {
  readonly fd: number;
  readonly path: string;
  readonly length: number;
}

export class LocalFile implements Storage {
  readonly fd: number;
  readonly path: string;
  readonly length: number;

  constructor(file: SharedFile) {
    this.fd = file.fd;
    this.path = file.path;
    this.length = file.length;
  }

  /**
   * Open a regular file or a block device for reading.
   *
   * @throws {StorageError} it does not exist, may not be read, or is something else
   */
  static openReadOnly(path: string): LocalFile {
    let fd: number;
    try {
      // O_NONBLOCK: opening a FIFO must not wait for a writer. It has no effect on files.
      fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
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
      return new LocalFile({ fd, path, length });
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  share(): SharedFile {
    return { fd: this.fd, path: this.path, length: this.length };
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

  allocatedSize(): number {
    const stats = fs.fstatSync(this.fd);
    return stats.isFile() ? stats.blocks * STAT_BLOCK_SIZE : this.length;
  }

  hostRun(offset: number, out: HostRun): void {
    out.isData = true;
    out.length = Math.max(this.length - offset, 1);
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
