/**
 * The operations of libfuse 2 on the tree of a mount. They run on the main thread, one after the other, and
 * answer as the handlers of opcodes.ts do; what differs is what libfuse does not tell, or cannot be told.
 */

import fs from "node:fs";
import { constants } from "node:os";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { Heartbeat } from "../../threads/heartbeat.ts";
import { createTrace } from "../../trace.ts";
import type { FileNode, TreeNode } from "../../tree/node.ts";
import { PLAIN_HANDLE } from "../../tree/truncated-files.ts";
import { modeOf } from "../attributes.ts";
import type { Server } from "../opcodes.ts";
import { openFile } from "../open-file.ts";
import { reportFailure } from "../request-failure.ts";
import type { Done, FuseOperations, SignalWithBuffer, Stat, Statfs } from "./fuse-native.ts";
import { type OpenedFile, OpenFiles } from "./open-files.ts";
import { RefusedOperations } from "./refused-operations.ts";
import { statfsOf } from "./statfs.ts";

const {
  EBADF,
  EISDIR,
  ENODATA,
  ENOENT,
  ENOSPC,
  ENOTDIR,
  EOPNOTSUPP,
  EPERM,
  ERANGE,
  EROFS,
  ESTALE,
} = constants.errno;
const { O_DSYNC } = fs.constants;

/** Bytes of the largest READ or WRITE: 32 pages, which are all that libfuse 2 asks the kernel for. */
const DATA_MAX = 128 * 1024;
const MS_PER_SECOND = 1000;

export class NativeOperations extends RefusedOperations implements FuseOperations {
  readonly #server: Server;
  readonly #files = new OpenFiles();
  readonly #trace = createTrace("fuse");
  readonly #heartbeat: Heartbeat;
  readonly #onFailure: (error: unknown) => void;
  /** What is read and written passes through here: the engine needs memory whose address it knows. */
  #data = NativeBuffer.allocate(DATA_MAX);

  /**
   * @param heartbeat beats with each request
   * @param onFailure what remains to be done after a request has failed: nothing can be served any more
   */
  constructor(server: Server, heartbeat: Heartbeat, onFailure: (error: unknown) => void) {
    super();
    this.#server = server;
    this.#heartbeat = heartbeat;
    this.#onFailure = onFailure;
  }

  getattr(path: string, done: Done<[Stat]>): void {
    this.#answerAt("getattr", path, done, (node) => {
      done(0, this.#statOf(node));
      return undefined;
    });
  }

  statfs(path: string, done: Done<[Statfs]>): void {
    this.#answerAt("statfs", path, done, (node) => {
      done(0, statfsOf(node.capacity()));
      return undefined;
    });
  }

  readdir(path: string, done: Done<[readonly string[], readonly Stat[]]>): void {
    this.#answerAt("readdir", path, done, (node) => {
      if (node.kind !== "directory") return -ENOTDIR;
      node.refresh();
      const names = [".", ".."];
      const stats = [this.#statOf(node), this.#statOf(node.parent ?? node)];
      for (let index = 0; ; index++) {
        const entry = node.entryAt(index);
        if (entry === undefined) break;
        names.push(entry.name);
        stats.push(this.#statOf(entry.node));
      }
      done(0, names, stats);
      return undefined;
    });
  }

  open(path: string, flags: number, done: Done<[number]>): void {
    this.#answerAt("open", path, done, (node) => {
      if (node.kind === "directory") return -EISDIR;
      const file = openFile(node, flags);
      if (file === undefined) return -EROFS;
      const { nodeid } = node;
      const { handle } = file;
      // O_SYNC is O_DSYNC and more.
      done(0, this.#files.add({ nodeid, handle, isSynchronous: (flags & O_DSYNC) !== 0 }));
      return undefined;
    });
  }

  read(
    path: string,
    fh: number,
    target: Buffer,
    length: number,
    offset: number,
    done: (result: number) => void,
  ): void {
    let result: number;
    try {
      const file = this.#files.get(fh);
      const node = this.#nodeOf(file);
      if (file === undefined || node === undefined) result = -ESTALE;
      else {
        const data = this.#room(length);
        result = node.read(file.handle, offset, length, data, 0);
        // A view of its own for each read: what is copied is at most 128 KiB, and the copy costs more.
        if (result > 0) target.set(data.bytes.subarray(0, result));
      }
    } catch (error) {
      result = -reportFailure("read", error);
    }
    if (this.#trace.enabled) this.#trace("read %s %d+%d: %d", path, offset, length, result);
    done(result);
    this.#finishLater();
  }

  write(
    path: string,
    fh: number,
    source: Buffer,
    length: number,
    offset: number,
    done: (result: number) => void,
  ): void {
    let result: number;
    try {
      const file = this.#files.get(fh);
      const node = this.#nodeOf(file);
      if (file === undefined || node === undefined) result = -ESTALE;
      else if (!node.isWritable) result = -EBADF;
      else {
        const data = this.#room(length);
        data.bytes.set(source);
        result = node.write(file.handle, offset, length, data, 0);
        if (result < 0) result = -ENOSPC;
        else if (file.isSynchronous) node.sync();
      }
    } catch (error) {
      result = -reportFailure("write", error);
    }
    if (this.#trace.enabled) this.#trace("write %s %d+%d: %d", path, offset, length, result);
    done(result);
    this.#finishLater();
  }

  release(path: string, fh: number, done: Done): void {
    this.#answer("release", path, done, () => {
      const file = this.#files.remove(fh);
      if (file !== undefined) this.#nodeOf(file)?.release(file.handle);
      return 0;
    });
  }

  fsync(path: string, _datasync: number, fh: number, done: Done): void {
    this.#answer("fsync", path, done, () => {
      const node = this.#nodeOf(this.#files.get(fh));
      if (node?.isWritable === true) node.sync();
      return 0;
    });
  }

  fsyncdir(path: string, _datasync: number, _fh: number, done: Done): void {
    this.#answer("fsyncdir", path, done, () => 0);
  }

  truncate(path: string, size: number, done: Done): void {
    this.#answerAt("truncate", path, done, (node) =>
      node.kind === "directory" ? -EISDIR : setSize(node, PLAIN_HANDLE, size),
    );
  }

  ftruncate(path: string, fh: number, size: number, done: Done): void {
    this.#answer("ftruncate", path, done, () => {
      const file = this.#files.get(fh);
      const node = this.#nodeOf(file);
      if (file === undefined || node === undefined) return -ESTALE;
      return setSize(node, file.handle, size);
    });
  }

  /** Times are the image's, and silently stay so. */
  utimens(path: string, _atime: number, _mtime: number, done: Done): void {
    this.#answer("utimens", path, done, () => 0);
  }

  setxattr(
    path: string,
    name: string,
    value: Buffer,
    _position: number,
    _flags: number,
    done: Done,
  ): void {
    this.#answerAt("setxattr", path, done, (node) => {
      if (node.kind === "directory") return -EOPNOTSUPP;
      return node.setXattr(name, value.toString()) ? 0 : -EOPNOTSUPP;
    });
  }

  getxattr(): void {
    throw new Error("NativeMount answers it");
  }

  listxattr(): void {
    throw new Error("NativeMount answers it");
  }

  /** The value of an extended attribute, in `room`; or how long it is, if there is none. */
  getXattr(signal: SignalWithBuffer, path: string, name: string, room: Buffer): void {
    const done = (result: number): void => signal(result, room.buffer);
    this.#answerAt("getxattr", path, done, (node) => {
      const value = node.xattrs().get(name);
      return value === undefined ? -ENODATA : putXattr(room, value);
    });
  }

  /** The names of all extended attributes, as `getXattr`. */
  listXattrs(signal: SignalWithBuffer, path: string, room: Buffer): void {
    const done = (result: number): void => signal(result, room.buffer);
    this.#answerAt("listxattr", path, done, (node) => {
      const names = [...node.xattrs().keys()];
      return putXattr(room, names.map((name) => `${name}\0`).join(""));
    });
  }

  /**
   * Answer a request.
   *
   * @param action its result, or undefined if it has answered itself
   */
  #answer(
    operation: string,
    path: string,
    done: (result: number) => void,
    action: () => number | undefined,
  ): void {
    let result: number | undefined;
    try {
      result = action();
    } catch (error) {
      result = -reportFailure(operation, error);
    }
    if (this.#trace.enabled) this.#trace("%s %s: %s", operation, path, result ?? "answered");
    if (result !== undefined) done(result);
    this.#finishLater();
  }

  /** Answer a request on the node at `path`. */
  #answerAt(
    operation: string,
    path: string,
    done: (result: number) => void,
    action: (node: TreeNode) => number | undefined,
  ): void {
    this.#answer(operation, path, done, () => {
      const node = this.#nodeAt(path);
      return node === undefined ? -ENOENT : action(node);
    });
  }

  /** The node of an open file; undefined: it is none any more, ESTALE. */
  #nodeOf(file: OpenedFile | undefined): FileNode | undefined {
    const node = file && this.#server.tree.node(file.nodeid);
    return node?.kind === "file" ? node : undefined;
  }

  #nodeAt(path: string): TreeNode | undefined {
    let node: TreeNode | undefined = this.#server.tree.root;
    for (const name of path.split("/")) {
      if (name === "") continue;
      if (node?.kind !== "directory") return undefined;
      node.refresh();
      node = node.lookup(name);
    }
    return node;
  }

  #statOf(node: TreeNode): Stat {
    const attributes = node.attributes();
    const { ownership } = this.#server;
    const time = Math.max(0, Math.floor(attributes.modifiedAt * MS_PER_SECOND));
    return {
      mode: modeOf(attributes, ownership),
      uid: ownership.uid,
      gid: ownership.gid,
      size: attributes.size,
      blocks: attributes.blocks,
      blksize: attributes.blockSize,
      nlink: attributes.links,
      atime: time,
      mtime: time,
      ctime: time,
    };
  }

  #room(length: number): NativeBuffer {
    if (length > this.#data.length) this.#data = NativeBuffer.allocate(length);
    return this.#data;
  }

  /** fuse-native replies in the next tick; what comes after that one is done before any other request. */
  #finishLater(): void {
    this.#heartbeat.beat();
    if (this.#server.tree.hasLateWork) process.nextTick(this.#finish);
  }

  readonly #finish = (): void => {
    try {
      this.#server.tree.finishRequest();
    } catch (error) {
      this.#onFailure(error);
    }
  };
}

/** 0, or a negative errno. */
function setSize(node: FileNode, handle: number, size: number): number {
  if (!node.isWritable) return -EROFS;
  return node.setSize(handle, size) ? 0 : -EPERM;
}

/** Bytes of `value`, which is put in `room` if there is any; or a negative errno. */
function putXattr(room: Buffer, value: string): number {
  const bytes = Buffer.from(value);
  if (room.length === 0) return bytes.length;
  if (bytes.length > room.length) return -ERANGE;
  room.set(bytes);
  return bytes.length;
}
