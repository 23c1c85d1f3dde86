/** Attributes of nodes in the structures of the kernel interface. */

import { sizeOf } from "../binary/struct.ts";
import type { NodeAttributes, TreeNode } from "../tree/node.ts";
import {
  ATTR,
  ATTR_OUT,
  ATTR_OUT_ATTR_OFFSET,
  ATTR_SIZE,
  ENTRY_ATTR_OFFSET,
  ENTRY_OUT,
  ENTRY_OUT_SIZE,
  S_IFDIR,
  S_IFREG,
  STATX_BASIC_STATS,
  STATX_OUT,
} from "./abi.ts";
import type { Request } from "./request.ts";

/** Whose the files are, and what others may do with them. */
export interface Ownership {
  readonly uid: number;
  readonly gid: number;
  /** Permission bits that are taken away from 0500, 0600 and 0400; if stated, from 0555, 0666 and 0444. */
  readonly umask: number | undefined;
}

/** How long the kernel may keep a name that never changes, seconds. */
const NAME_VALID_SECONDS = 3600;

const NANOSECONDS = 1e9;

/** `st_mode` of a node: its type, and what may be done with it. */
export function modeOf({ isDirectory, isWritable }: NodeAttributes, { umask }: Ownership): number {
  const type = isDirectory ? S_IFDIR : S_IFREG;
  const mode = isDirectory ? 0o555 : isWritable ? 0o666 : 0o444;
  // Without a umask only the owner may do anything: these are disks.
  return type | (mode & ~(umask ?? 0o077));
}

function setAttr(
  request: Request,
  attributes: NodeAttributes,
  ownership: Ownership,
  at: number,
): void {
  const seconds = Math.floor(attributes.modifiedAt);
  const nanoseconds = Math.floor((attributes.modifiedAt - seconds) * NANOSECONDS);
  request.set(
    ATTR,
    {
      ino: attributes.nodeid,
      size: attributes.size,
      blocks: attributes.blocks,
      atime: seconds,
      mtime: seconds,
      ctime: seconds,
      atimensec: nanoseconds,
      mtimensec: nanoseconds,
      ctimensec: nanoseconds,
      mode: modeOf(attributes, ownership),
      nlink: attributes.links,
      uid: ownership.uid,
      gid: ownership.gid,
      blksize: attributes.blockSize,
    },
    at,
  );
}

/** Put a `fuse_attr_out`; returns its size. */
export function putAttr(request: Request, node: TreeNode, ownership: Ownership): number {
  const attributes = node.attributes();
  request.clear(ATTR_OUT_ATTR_OFFSET + ATTR_SIZE);
  request.set(ATTR_OUT, { attr_valid: attributes.validSeconds });
  setAttr(request, attributes, ownership, ATTR_OUT_ATTR_OFFSET);
  return ATTR_OUT_ATTR_OFFSET + ATTR_SIZE;
}

/** An entry of a directory, as a reply has it. */
export interface ReplyEntry {
  readonly node: TreeNode;
  /** The name stands for this node as long as the mount lasts. */
  readonly isFixed: boolean;
}

/** Put a `fuse_entry_out` at byte `at` of the payload; returns its size. */
export function putEntry(
  request: Request,
  { node, isFixed }: ReplyEntry,
  ownership: Ownership,
  at = 0,
): number {
  const attributes = node.attributes();
  request.clear(ENTRY_OUT_SIZE, at);
  request.set(
    ENTRY_OUT,
    {
      nodeid: node.nodeid,
      entry_valid: isFixed ? NAME_VALID_SECONDS : 0,
      attr_valid: attributes.validSeconds,
    },
    at,
  );
  setAttr(request, attributes, ownership, at + ENTRY_ATTR_OFFSET);
  return ENTRY_OUT_SIZE;
}

/** Put a `fuse_statx_out`; returns its size. */
export function putStatx(request: Request, node: TreeNode, ownership: Ownership): number {
  const attributes = node.attributes();
  const seconds = Math.floor(attributes.modifiedAt);
  const nanoseconds = Math.floor((attributes.modifiedAt - seconds) * NANOSECONDS);
  request.clear(sizeOf(STATX_OUT));
  request.set(STATX_OUT, {
    attr_valid: attributes.validSeconds,
    mask: STATX_BASIC_STATS,
    blksize: attributes.blockSize,
    nlink: attributes.links,
    uid: ownership.uid,
    gid: ownership.gid,
    mode: modeOf(attributes, ownership),
    ino: attributes.nodeid,
    size: attributes.size,
    blocks: attributes.blocks,
    atime_sec: seconds,
    atime_nsec: nanoseconds,
    ctime_sec: seconds,
    ctime_nsec: nanoseconds,
    mtime_sec: seconds,
    mtime_nsec: nanoseconds,
  });
  return sizeOf(STATX_OUT);
}
