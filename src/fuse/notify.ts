/** Telling the kernel that what it knows of a node is not true any more. Source: linux/fuse.h. */

import { encode, sizeOf } from "../binary/struct.ts";
import { write } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { NOTIFY_INVAL_INODE, NOTIFY_INVAL_INODE_OUT, OUT_HEADER, OUT_HEADER_SIZE } from "./abi.ts";

/**
 * Let the kernel ask for the attributes of a node again, its size above all. Its pages stay: dropping them
 * waits for reads of the node, which this very thread may have to answer.
 *
 * @param fd a descriptor of the session
 */
export function notifyStaleAttributes(fd: number, nodeid: number): void {
  notify(fd, nodeid, -1);
}

/**
 * Let the kernel forget the attributes and all pages of a node. Nobody has it open, so that no page is being read or
 * written, which would be waited for.
 *
 * @param fd a descriptor of the session
 */
export function notifyStalePages(fd: number, nodeid: number): void {
  notify(fd, nodeid, 0);
}

function notify(fd: number, nodeid: number, offset: number): void {
  const message = NativeBuffer.allocate(OUT_HEADER_SIZE + sizeOf(NOTIFY_INVAL_INODE_OUT));
  const { bytes, address, length } = message;
  encode(OUT_HEADER, { len: length, error: NOTIFY_INVAL_INODE, unique: 0 }, bytes, "le");
  encode(
    NOTIFY_INVAL_INODE_OUT,
    { ino: nodeid, off: offset, len: 0 },
    bytes,
    "le",
    OUT_HEADER_SIZE,
  );
  // It fails if the kernel knows nothing of the node: then there is nothing to forget.
  write(fd, address, length);
}
