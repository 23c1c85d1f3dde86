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
  const message = NativeBuffer.allocate(OUT_HEADER_SIZE + sizeOf(NOTIFY_INVAL_INODE_OUT));
  const { bytes, address, length } = message;
  encode(OUT_HEADER, { len: length, error: NOTIFY_INVAL_INODE, unique: 0 }, bytes, "le");
  encode(NOTIFY_INVAL_INODE_OUT, { ino: nodeid, off: -1, len: 0 }, bytes, "le", OUT_HEADER_SIZE);
  // It fails if the kernel knows nothing of the node: then there is nothing to forget.
  write(fd, address, length);
}
