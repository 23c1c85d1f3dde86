/**
 * The npm package fuse-native as far as it is used here, and loading it. It is an optional dependency:
 * a binding of libfuse 2, whose callbacks run on the main thread.
 */

import { createRequire } from "node:module";
import { TsimgfsError } from "../../errors.ts";

/** Ends a request: 0 or more, or a negative errno; then what it asked for. */
export type Done<T extends readonly unknown[] = []> = (result: number, ...values: T | []) => void;

/** What stat(2) tells. fuse-native keeps 32 bits of all but `size` and `blocks`. */
export interface Stat {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly size: number;
  /** Units of 512 bytes. */
  readonly blocks: number;
  readonly blksize: number;
  readonly nlink: number;
  /** Milliseconds since the epoch, not before it. */
  readonly atime: number;
  readonly mtime: number;
  readonly ctime: number;
}

/** What statvfs(3) tells: 32 bits each. */
export interface Statfs {
  readonly bsize: number;
  readonly frsize: number;
  readonly blocks: number;
  readonly namemax: number;
}

/**
 * The operations of `struct fuse_operations` that are answered here; what is not, libfuse answers with
 * ENOSYS. Paths begin with a slash, which is the root. `fh` is what `open` gave, > 0.
 */
export interface FuseOperations {
  getattr(path: string, done: Done<[Stat]>): void;
  statfs(path: string, done: Done<[Statfs]>): void;
  readdir(path: string, done: Done<[readonly string[], readonly Stat[]]>): void;
  open(path: string, flags: number, done: Done<[number]>): void;
  read(
    path: string,
    fh: number,
    target: Buffer,
    length: number,
    offset: number,
    done: (result: number) => void,
  ): void;
  write(
    path: string,
    fh: number,
    source: Buffer,
    length: number,
    offset: number,
    done: (result: number) => void,
  ): void;
  release(path: string, fh: number, done: Done): void;
  fsync(path: string, datasync: number, fh: number, done: Done): void;
  fsyncdir(path: string, datasync: number, fh: number, done: Done): void;
  truncate(path: string, size: number, done: Done): void;
  ftruncate(path: string, fh: number, size: number, done: Done): void;
  utimens(path: string, atime: number, mtime: number, done: Done): void;
  setxattr(
    path: string,
    name: string,
    value: Buffer,
    position: number,
    flags: number,
    done: Done,
  ): void;
  /** Of these two only the names count: `NativeMount` answers them, who knows how much room there is. */
  getxattr(): void;
  listxattr(): void;
  removexattr(path: string, name: string, done: Done): void;
  chown(path: string, uid: number, gid: number, done: Done): void;
  chmod(path: string, mode: number, done: Done): void;
  mknod(path: string, mode: number, device: number, done: Done): void;
  mkdir(path: string, mode: number, done: Done): void;
  create(path: string, mode: number, done: Done): void;
  symlink(target: string, path: string, done: Done): void;
  link(path: string, target: string, done: Done): void;
  rename(path: string, target: string, done: Done): void;
  unlink(path: string, done: Done): void;
  rmdir(path: string, done: Done): void;
}

/** Ends a request on an extended attribute, whose buffer must be handed back. */
export type SignalWithBuffer = (result: number, room: ArrayBufferLike) => void;

/** An instance of the package's class. What begins with an underscore is its own, of version 2.2.6. */
export interface FuseInstance {
  mount(done: (error: Error | null | undefined) => void): void;
  /** With `unmount` of the class replaced: let go of the event loop. */
  unmount(done: (error: Error | null | undefined) => void): void;
  /** The argument for libfuse: `-o` and options. */
  _fuseOptions(): string;
  _op_getxattr(signal: SignalWithBuffer, path: string, name: string, room: Buffer): void;
  _op_listxattr(signal: SignalWithBuffer, path: string, room: Buffer): void;
}

export interface FuseClass {
  new (mountpoint: string, operations: FuseOperations, options: { timeout: false }): FuseInstance;
  /** Called by `unmount` of an instance first: runs `fusermount -uz`, whatever is mounted there by then. */
  unmount(mountpoint: string, done: (error: Error | null) => void): void;
}

/** What messages about this transport are about. */
export const FUSE_NATIVE = "--transport fuse-native";

/**
 * Load the package.
 *
 * @throws {TsimgfsError} it is not installed, or cannot be loaded
 */
export function loadFuseNative(): FuseClass {
  let Fuse: FuseClass;
  try {
    Fuse = createRequire(import.meta.url)("fuse-native");
  } catch (cause) {
    throw new TsimgfsError("ENOTSUP", FUSE_NATIVE, explainLoadFailure(cause), { cause });
  }
  return Fuse;
}

/** Why the package could not be loaded, and what to do: one line. */
export function explainLoadFailure(cause: unknown): string {
  const [message = ""] = (cause instanceof Error ? cause.message : String(cause)).split("\n");
  if (/^Cannot find module 'fuse-native'/.test(message)) {
    return "the npm package fuse-native is not installed; npm install fuse-native, or do without the option";
  }
  if (/^libfuse\.so\.2:/.test(message)) {
    return "libfuse.so.2 is not there; install the package libfuse2, or do without the option";
  }
  return `the npm package fuse-native cannot be loaded: ${message}; do without the option`;
}
