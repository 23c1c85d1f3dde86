/**
 * QEMU's image locks: byte-range locks of the open file description, so that QEMU and tsimgfs keep
 * each other out as two QEMUs do. Byte 100 + i is held (for reading) by whoever uses permission i,
 * byte 200 + i by whoever does not share it. See native-notes/locks.md.
 */

import fs from "node:fs";
import { StorageError } from "../errors.ts";
import { fcntlPointer } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { LocalFile } from "./local-file.ts";
import { processName } from "./process-name.ts";

/** The permissions of QEMU's block layer that locks stand for. */
const PERMISSION = { consistentRead: 0, write: 1, resize: 3 } as const;
const USED_BASE = 100;
const UNSHARED_BASE = 200;

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

/** `struct flock` with 64-bit offsets. Offsets in bytes. */
const FLOCK = { type: 0, whence: 2, start: 8, length: 16, pid: 24, size: 32 } as const;

/** Which permissions somebody uses, and which he does not share with others. */
interface Claim {
  readonly uses: readonly number[];
  readonly refuses: readonly number[];
  /** How a message ends that refuses the claim. */
  readonly advice: string;
}

/** A reader that keeps a consistent view. */
const READER: Claim = {
  uses: [PERMISSION.consistentRead],
  refuses: [PERMISSION.write, PERMISSION.resize],
  advice: "which may write to it; stop that first, or read what may change with --force-share",
};

/** A writer: what QEMU holds of a writable image. */
const WRITER: Claim = {
  uses: [PERMISSION.consistentRead, PERMISSION.write, PERMISSION.resize],
  refuses: [PERMISSION.write, PERMISSION.resize],
  advice: "and cannot be written to meanwhile; stop that first",
};

const flock = (type: number, byte: number): NativeBuffer => {
  const lock = NativeBuffer.allocate(FLOCK.size);
  lock.view.setInt16(FLOCK.type, type, true);
  lock.view.setBigInt64(FLOCK.start, BigInt(byte), true);
  lock.view.setBigInt64(FLOCK.length, 1n, true);
  return lock;
};

/**
 * Lock an image as QEMU does for a reader. The lock ends when the file is closed.
 * File systems without locks are used without, as QEMU does.
 *
 * @throws {StorageError} EAGAIN: somebody writes to the image; the reason says who
 */
export function lockForReading(file: LocalFile): void {
  lock(file, READER);
}

/**
 * As `lockForReading`, for a writer.
 *
 * @throws {StorageError} EAGAIN: somebody else uses the image; the reason says who
 */
export function lockForWriting(file: LocalFile): void {
  lock(file, WRITER);
}

function lock(file: LocalFile, claim: Claim): void {
  // Held first and looked at then: of two who come at the same time, at least one sees the other.
  for (const permission of claim.uses) setLock(file, USED_BASE + permission);
  for (const permission of claim.refuses) setLock(file, UNSHARED_BASE + permission);
  for (const permission of claim.uses) refuseHolder(file, UNSHARED_BASE + permission, claim);
  for (const permission of claim.refuses) refuseHolder(file, USED_BASE + permission, claim);
}

function setLock(file: LocalFile, byte: number): void {
  // It fails only where locks do not exist: read locks of bytes that nobody locks for writing.
  fcntlPointer(file.fd, F_OFD_SETLK, flock(F_RDLCK, byte).address);
}

function refuseHolder(file: LocalFile, byte: number, { advice }: Claim): void {
  const lock = flock(F_WRLCK, byte);
  if (fcntlPointer(file.fd, F_OFD_GETLK, lock.address) < 0) return;
  if (lock.view.getInt16(FLOCK.type, true) === F_UNLCK) return;
  const holder = findHolder(file, byte) ?? "another process";
  throw new StorageError("EAGAIN", file.path, `is in use by ${holder}, ${advice}`);
}

/** `qemu-io (pid 123)` for the process that holds a lock on `byte`, if /proc shows it to us. */
function findHolder(file: LocalFile, byte: number): string | undefined {
  const { dev, ino } = fs.fstatSync(file.fd);
  for (const pid of fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      for (const fd of fs.readdirSync(`/proc/${pid}/fdinfo`)) {
        if (Number(pid) === process.pid && Number(fd) === file.fd) continue;
        if (!holdsLock(fs.readFileSync(`/proc/${pid}/fdinfo/${fd}`, "utf8"), ino, byte)) continue;
        const stats = fs.statSync(`/proc/${pid}/fd/${fd}`);
        if (stats.dev !== dev || stats.ino !== ino) continue;
        return processName(pid);
      }
    } catch {
      // The process has ended, or belongs to another user.
    }
  }
  return undefined;
}

/** Whether a text of /proc/PID/fdinfo lists a lock on `byte` of the inode. */
function holdsLock(fdinfo: string, ino: number, byte: number): boolean {
  for (const line of fdinfo.split("\n")) {
    // lock:	1: OFDLCK  ADVISORY  READ -1 fe:00:1234 100 101
    const match = /^lock:.* [0-9a-f]+:[0-9a-f]+:(\d+) (\d+) (\d+|EOF)$/.exec(line);
    if (match === null || Number(match[1]) !== ino) continue;
    const last = match[3] === "EOF" ? Number.POSITIVE_INFINITY : Number(match[3]);
    if (Number(match[2]) <= byte && byte <= last) return true;
  }
  return false;
}
