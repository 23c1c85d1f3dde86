/** Opening a file of the tree with the flags of open(2). */

import fs from "node:fs";
import type { FileNode, OpenFile } from "../tree/node.ts";
import { O_DIRECT } from "./abi.ts";

const { O_ACCMODE, O_RDONLY, O_TRUNC } = { ...fs.constants, O_ACCMODE: 3 };

/** Whether a file that is opened with `flags` can be written to. */
export function opensForWriting(flags: number): boolean {
  return (flags & O_ACCMODE) !== O_RDONLY;
}

/** Open a file; undefined: it is read-only, and `flags` are not. */
export function openFile(node: FileNode, flags: number): OpenFile | undefined {
  if (opensForWriting(flags) && !node.isWritable) return undefined;
  return node.open({ direct: (flags & O_DIRECT) !== 0, truncates: (flags & O_TRUNC) !== 0 });
}
