/**
 * Every request that the kernel may send, and what answers it. A handler puts its payload behind the
 * reply header and returns its length, or a negative errno, or NO_REPLY.
 *
 * ENOSYS is remembered by the kernel: it stands only where it never need ask again.
 */

import fs from "node:fs";
import { constants } from "node:os";
import type { Field } from "../binary/struct.ts";
import { sizeOf } from "../binary/struct.ts";
import type { TreeNode } from "../tree/node.ts";
import type { Tree } from "../tree/tree.ts";
import { PLAIN_HANDLE } from "../tree/truncated-files.ts";
import {
  FALLOCATE_IN,
  FALLOCATE_MODE,
  FOPEN,
  GETXATTR_IN,
  GETXATTR_OUT,
  INTERRUPT_IN,
  LSEEK_IN,
  LSEEK_OUT,
  OPEN_IN,
  OPEN_OUT,
  OUT_HEADER_SIZE,
  READ_IN,
  RELEASE_IN,
  REPLY,
  REQUEST,
  SEEK_DATA,
  SEEK_HOLE,
  SETATTR_IN,
  SETATTR_VALID,
  SETXATTR_IN,
  STATFS_OUT,
  WRITE_CACHE,
  WRITE_IN,
  WRITE_OUT_SIZE,
} from "./abi.ts";
import { type Ownership, putAttr, putEntry, putStatx } from "./attributes.ts";
import { openFile, opensForWriting } from "./open-file.ts";
import { putDirectory } from "./read-directory.ts";
import { NO_REPLY, type Request } from "./request.ts";

const {
  EBADF,
  EINVAL,
  EISDIR,
  ENODATA,
  ENOENT,
  ENOSPC,
  ENOSYS,
  ENOTDIR,
  ENOTTY,
  ENXIO,
  EOPNOTSUPP,
  EPERM,
  ERANGE,
  EROFS,
  ESTALE,
} = constants.errno;
const { O_DSYNC } = fs.constants;

/** What the handlers of a thread work on. */
export interface Server {
  readonly tree: Tree;
  readonly ownership: Ownership;
}

type Handler = (server: Server, request: Request) => number;

/** One row: name as in linux/fuse.h, arguments behind the header, what answers. */
export interface Operation {
  readonly name: string;
  readonly fields: readonly Field[];
  readonly handle: Handler;
}

const reply =
  (result: number): Handler =>
  () =>
    result;
const OK = reply(0);
/** What there is follows from the images: nothing can be added, removed or renamed. */
const NOT_PERMITTED = reply(-EPERM);
const NOT_SUPPORTED = reply(-EOPNOTSUPP);
const NEVER_AGAIN = reply(-ENOSYS);

const NO_FIELDS: readonly Field[] = [];
const row = (name: string, fields: readonly Field[], handle: Handler): Operation => ({
  name,
  fields,
  handle,
});

// biome-ignore format: a table reads in columns
export const OPERATIONS: ReadonlyMap<number, Operation> = new Map([
  [1,  row("LOOKUP",          NO_FIELDS,   lookup)],
  [2,  row("FORGET",          NO_FIELDS,   reply(NO_REPLY))],
  [3,  row("GETATTR",         NO_FIELDS,   getattr)],
  [4,  row("SETATTR",         SETATTR_IN,  setattr)],
  [5,  row("READLINK",        NO_FIELDS,   reply(-EINVAL))],
  [6,  row("SYMLINK",         NO_FIELDS,   NOT_PERMITTED)],
  [8,  row("MKNOD",           NO_FIELDS,   NOT_PERMITTED)],
  [9,  row("MKDIR",           NO_FIELDS,   NOT_PERMITTED)],
  [10, row("UNLINK",          NO_FIELDS,   NOT_PERMITTED)],
  [11, row("RMDIR",           NO_FIELDS,   NOT_PERMITTED)],
  [12, row("RENAME",          NO_FIELDS,   NOT_PERMITTED)],
  [13, row("LINK",            NO_FIELDS,   NOT_PERMITTED)],
  [14, row("OPEN",            OPEN_IN,     open)],
  [15, row("READ",            READ_IN,     read)],
  [16, row("WRITE",           WRITE_IN,    write)],
  [17, row("STATFS",          NO_FIELDS,   statfs)],
  [18, row("RELEASE",         RELEASE_IN,  release)],
  [20, row("FSYNC",           NO_FIELDS,   fsync)],
  [21, row("SETXATTR",        SETXATTR_IN, setxattr)],
  [22, row("GETXATTR",        GETXATTR_IN, getxattr)],
  [23, row("LISTXATTR",       GETXATTR_IN, listxattr)],
  [24, row("REMOVEXATTR",     NO_FIELDS,   NOT_SUPPORTED)],
  // What was written is in the image's files already: close(2) has nothing to wait for.
  [25, row("FLUSH",           NO_FIELDS,   OK)],
  [27, row("OPENDIR",         NO_FIELDS,   opendir)],
  [28, row("READDIR",         READ_IN,     readdir)],
  [29, row("RELEASEDIR",      NO_FIELDS,   OK)],
  [30, row("FSYNCDIR",        NO_FIELDS,   OK)],
  // Locks are the kernel's own: they were not negotiated.
  [31, row("GETLK",           NO_FIELDS,   NEVER_AGAIN)],
  [32, row("SETLK",           NO_FIELDS,   NEVER_AGAIN)],
  [33, row("SETLKW",          NO_FIELDS,   NEVER_AGAIN)],
  // With default_permissions the kernel decides.
  [34, row("ACCESS",          NO_FIELDS,   OK)],
  [35, row("CREATE",          NO_FIELDS,   NOT_PERMITTED)],
  // Most requests are short: what is meant is answered soon, as if nothing had been said.
  [36, row("INTERRUPT",       INTERRUPT_IN, interrupt)],
  [37, row("BMAP",            NO_FIELDS,   NEVER_AGAIN)],
  [38, row("DESTROY",         NO_FIELDS,   OK)],
  [39, row("IOCTL",           NO_FIELDS,   reply(-ENOTTY))],
  // Files are always ready, which the kernel answers by itself.
  [40, row("POLL",            NO_FIELDS,   NEVER_AGAIN)],
  [41, row("NOTIFY_REPLY",    NO_FIELDS,   reply(NO_REPLY))],
  [42, row("BATCH_FORGET",    NO_FIELDS,   reply(NO_REPLY))],
  [43, row("FALLOCATE",       FALLOCATE_IN, fallocate)],
  [44, row("READDIRPLUS",     READ_IN,     readdirplus)],
  [45, row("RENAME2",         NO_FIELDS,   NOT_PERMITTED)],
  [46, row("LSEEK",           LSEEK_IN,    lseek)],
  // The kernel copies through its page cache then.
  [47, row("COPY_FILE_RANGE", NO_FIELDS,   NEVER_AGAIN)],
  [48, row("SETUPMAPPING",    NO_FIELDS,   NEVER_AGAIN)],
  [49, row("REMOVEMAPPING",   NO_FIELDS,   NEVER_AGAIN)],
  [50, row("SYNCFS",          NO_FIELDS,   OK)],
  [51, row("TMPFILE",         NO_FIELDS,   NOT_PERMITTED)],
  [52, row("STATX",           NO_FIELDS,   statx)],
  [53, row("COPY_FILE_RANGE_64", NO_FIELDS, NEVER_AGAIN)],
]);

/** What this version does not know, a newer kernel may do without. */
export const UNKNOWN_OPERATION: Operation = row("unknown", NO_FIELDS, NEVER_AGAIN);

/** Operations by opcode, for the request loop: an array is found in fewer steps than a map. */
export function operationTable(): readonly (Operation | undefined)[] {
  const table: (Operation | undefined)[] = [];
  for (const [opcode, operation] of OPERATIONS) table[opcode] = operation;
  return table;
}

/** The file that a request is about; undefined: it is none any more, ESTALE. */
function nodeOf(server: Server, request: Request): TreeNode | undefined {
  return server.tree.node(request.nodeid);
}

function lookup(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node === undefined) return -ESTALE;
  const name = request.name();
  // So the kernel asks for what it has forgotten, and somebody has a handle of: NFS, or open_by_handle_at(2).
  if (name === ".") return putEntry(request, { node, isFixed: false }, server.ownership);
  if (node.kind !== "directory") return -ENOTDIR;
  if (name === "..") {
    return putEntry(request, { node: node.parent ?? node, isFixed: false }, server.ownership);
  }
  node.refresh();
  const entry = node.lookup(name);
  if (entry === undefined) return -ENOENT;
  return putEntry(request, { node: entry, isFixed: node.isFixed }, server.ownership);
}

function getattr(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  return node === undefined ? -ESTALE : putAttr(request, node, server.ownership);
}

function statx(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  return node === undefined ? -ESTALE : putStatx(request, node, server.ownership);
}

function open(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node === undefined) return -ESTALE;
  if (node.kind === "directory") return -EISDIR;
  const { flags } = request.arguments(OPEN_IN);
  const file = openFile(node, flags);
  if (file === undefined) return -EROFS;
  // A close(2) of who only reads need not ask; for others the kernel writes back what was mapped.
  let openFlags: number = opensForWriting(flags) ? 0 : FOPEN.noFlush;
  if (file.directIo) openFlags |= FOPEN.directIo | FOPEN.parallelDirectWrites;
  if (file.keepCache) openFlags |= FOPEN.keepCache;
  request.clear(sizeOf(OPEN_OUT));
  request.set(OPEN_OUT, { fh: file.handle, open_flags: openFlags });
  return sizeOf(OPEN_OUT);
}

function read(server: Server, request: Request): number {
  const node = server.tree.node(request.nodeid);
  if (node === undefined) return -ESTALE;
  if (node.kind === "directory") return -EISDIR;
  const size = request.input.view.getUint32(REQUEST.readSize, true);
  const length = Math.min(size, request.payloadMax);
  const handle = request.u64(REQUEST.readFh);
  const offset = request.u64(REQUEST.readOffset);
  return node.read(handle, offset, length, request.output, OUT_HEADER_SIZE);
}

function write(server: Server, request: Request): number {
  const node = server.tree.node(request.nodeid);
  if (node === undefined) return -ESTALE;
  if (node.kind === "directory") return -EISDIR;
  if (!node.isWritable) return -EBADF;
  const { input } = request;
  const offset = request.u64(REQUEST.writeOffset);
  const size = input.view.getUint32(REQUEST.writeSize, true);
  if (size > input.length - REQUEST.writeData) return -EINVAL;
  const isMapped = (input.view.getUint32(REQUEST.writeFlags, true) & WRITE_CACHE) !== 0;
  const handle = isMapped ? PLAIN_HANDLE : request.u64(REQUEST.writeFh);
  const count = node.write(handle, offset, size, input, REQUEST.writeData);
  if (count < 0) return -ENOSPC;
  // O_SYNC is O_DSYNC and more.
  if ((input.view.getUint32(REQUEST.writeOpenFlags, true) & O_DSYNC) !== 0) node.sync();
  const { view } = request.output;
  view.setUint32(REPLY.writeSize, count, true);
  view.setUint32(REPLY.writeSize + 4, 0, true);
  return WRITE_OUT_SIZE;
}

function fsync(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node?.kind === "file" && node.isWritable) node.sync();
  return 0;
}

function fallocate(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node === undefined) return -ESTALE;
  if (node.kind === "directory") return -EISDIR;
  if (!node.isWritable) return -EBADF;
  const fields = request.arguments(FALLOCATE_IN);
  const keepsSize = (fields.mode & FALLOCATE_MODE.keepSize) !== 0;
  const mode = fields.mode & ~FALLOCATE_MODE.keepSize;
  const what =
    mode === 0
      ? "allocate"
      : mode === FALLOCATE_MODE.punchHole
        ? "punch"
        : mode === FALLOCATE_MODE.zeroRange
          ? "zero"
          : undefined;
  if (what === undefined) return -EOPNOTSUPP;
  const offset = Number(fields.offset);
  const done = node.allocateRange(offset, Number(fields.length), what, keepsSize);
  return done ? 0 : -ENOSPC;
}

/** Sizes as the device allows; times are the image's, and silently stay so; owners and modes stay. */
function setattr(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node === undefined) return -ESTALE;
  const { valid, size, fh } = request.arguments(SETATTR_IN);
  const owns = SETATTR_VALID.mode | SETATTR_VALID.uid | SETATTR_VALID.gid;
  if ((valid & owns) !== 0) return -EPERM;
  if ((valid & SETATTR_VALID.size) !== 0) {
    if (node.kind === "directory") return -EISDIR;
    if (!node.isWritable) return -EROFS;
    const handle = (valid & SETATTR_VALID.handle) !== 0 ? fh : PLAIN_HANDLE;
    if (!node.setSize(handle, Number(size))) return -EPERM;
  }
  return putAttr(request, node, server.ownership);
}

function statfs(server: Server, request: Request): number {
  const { blockSize, size } = (nodeOf(server, request) ?? server.tree.root).capacity();
  request.clear(sizeOf(STATFS_OUT));
  request.set(STATFS_OUT, {
    blocks: Math.ceil(size / blockSize),
    bsize: blockSize,
    frsize: blockSize,
    namelen: 255,
  });
  return sizeOf(STATFS_OUT);
}

function release(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node?.kind === "file") node.release(request.arguments(RELEASE_IN).fh);
  return 0;
}

function getxattr(server: Server, request: Request): number {
  const name = request.name(sizeOf(GETXATTR_IN));
  const value = nodeOf(server, request)?.xattrs().get(name);
  return value === undefined ? -ENODATA : putXattr(request, Buffer.from(value));
}

/** Commands to a device; who may write to it may give them, which the kernel has looked at. */
function setxattr(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node === undefined) return -ESTALE;
  if (node.kind === "directory") return -EOPNOTSUPP;
  const skip = sizeOf(SETXATTR_IN);
  const { size } = request.arguments(SETXATTR_IN);
  const value = request.valueAfterName(skip, size).toString();
  const { interruptions } = server.tree;
  interruptions.begin(request.uniqueLow);
  try {
    return node.setXattr(request.name(skip), value) ? 0 : -EOPNOTSUPP;
  } finally {
    interruptions.end();
  }
}

function interrupt(server: Server, request: Request): number {
  server.tree.interruptions.interrupt(request.arguments(INTERRUPT_IN).unique_lo);
  return NO_REPLY;
}

function listxattr(server: Server, request: Request): number {
  const names = [...(nodeOf(server, request)?.xattrs().keys() ?? [])];
  return putXattr(request, Buffer.from(names.map((name) => `${name}\0`).join("")));
}

function putXattr(request: Request, value: Buffer): number {
  const { size } = request.arguments(GETXATTR_IN);
  if (size === 0) {
    request.clear(sizeOf(GETXATTR_OUT));
    request.set(GETXATTR_OUT, { size: value.length });
    return sizeOf(GETXATTR_OUT);
  }
  if (value.length > size) return -ERANGE;
  request.put(value);
  return value.length;
}

function opendir(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node === undefined) return -ESTALE;
  if (node.kind !== "directory") return -ENOTDIR;
  request.clear(sizeOf(OPEN_OUT));
  // The kernel may keep what it has read of entries that never change.
  if (node.isFixed) request.set(OPEN_OUT, { open_flags: FOPEN.cacheDir | FOPEN.keepCache });
  return sizeOf(OPEN_OUT);
}

function readdir(server: Server, request: Request): number {
  return readDirectory(server, request, undefined);
}

function readdirplus(server: Server, request: Request): number {
  return readDirectory(server, request, server.ownership);
}

function readDirectory(server: Server, request: Request, plus: Ownership | undefined): number {
  const node = nodeOf(server, request);
  if (node === undefined) return -ESTALE;
  if (node.kind !== "directory") return -ENOTDIR;
  const size = request.input.view.getUint32(REQUEST.readSize, true);
  return putDirectory(request, node, { offset: request.u64(REQUEST.readOffset), size, plus });
}

function lseek(server: Server, request: Request): number {
  const node = nodeOf(server, request);
  if (node === undefined) return -ESTALE;
  if (node.kind === "directory") return -EISDIR;
  // Negative offsets are the highest of all: past the end of every file.
  const offset = request.u64(REQUEST.lseekOffset);
  const whence = request.input.view.getUint32(REQUEST.lseekWhence, true);
  if (whence !== SEEK_DATA && whence !== SEEK_HOLE) return -EINVAL;
  const found = node.seek(offset, whence === SEEK_DATA ? "data" : "hole");
  if (found < 0) return -ENXIO;
  request.set(LSEEK_OUT, { offset: found });
  return sizeOf(LSEEK_OUT);
}
