/** Files whose length their host fixes, as a block device has one: devices of our own mounts. */

import fs from "node:fs";
import { getxattr } from "../syscalls/libc.ts";

/** statfs(2): f_type of FUSE. Copies of our devices elsewhere may have kept their attributes. */
const FUSE_SUPER_MAGIC = 0x65735546;

/** What every device of ours has: the image that it shows. */
export const IMAGE_XATTR = "user.tsimgfs.image";
/** Only devices have it whose length truncate(2) changes. */
export const GROWABLE_XATTR = "user.tsimgfs.growable";

/** Whether an open file is a device of ours that keeps its length. */
export function hasFixedLength(fd: number): boolean {
  const path = `/proc/self/fd/${fd}`;
  if (fs.statfsSync(path).type !== FUSE_SUPER_MAGIC) return false;
  return hasXattr(path, IMAGE_XATTR) && !hasXattr(path, GROWABLE_XATTR);
}

function hasXattr(path: string, name: string): boolean {
  return getxattr(path, name, 0, 0) >= 0;
}
