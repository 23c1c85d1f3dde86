/** READDIR and READDIRPLUS: entries of a directory, as many as fit in the reply. */

import type { DirectoryEntry, DirectoryNode } from "../tree/node.ts";
import { DIRENT, DIRENT_SIZE, ENTRY_OUT_SIZE, S_IFDIR, S_IFREG } from "./abi.ts";
import { type Ownership, putEntry } from "./attributes.ts";
import type { Request } from "./request.ts";

/** `.` and `..` come first: cookie 1 stands after the first, and so on. */
const DOT_ENTRIES = 2;

function entryAt(directory: DirectoryNode, index: number): DirectoryEntry | undefined {
  if (index === 0) return { name: ".", node: directory };
  if (index === 1) return { name: "..", node: directory.parent ?? directory };
  return directory.entryAt(index - DOT_ENTRIES);
}

/**
 * Put entries from cookie `offset` on, in at most `size` bytes; returns the bytes put.
 *
 * @param plus READDIRPLUS: each entry with its attributes, as LOOKUP would give them
 */
export function putDirectory(
  request: Request,
  directory: DirectoryNode,
  { offset, size, plus }: { offset: number; size: number; plus: Ownership | undefined },
): number {
  directory.refresh();
  const limit = Math.min(size, request.payloadMax);
  let at = 0;
  for (let index = offset; ; index++) {
    const entry = entryAt(directory, index);
    if (entry === undefined) return at;
    const name = Buffer.from(entry.name);
    const head = plus === undefined ? 0 : ENTRY_OUT_SIZE;
    const length = head + Math.ceil((DIRENT_SIZE + name.length) / 8) * 8;
    if (at + length > limit) return at;
    request.clear(length, at);
    const { node } = entry;
    // The kernel looks up neither of the dots: a node id would count as a reference.
    if (plus !== undefined && index >= DOT_ENTRIES) {
      putEntry(request, { node, isFixed: directory.isFixed }, plus, at);
    }
    const type = node.kind === "directory" ? S_IFDIR : S_IFREG;
    request.set(
      DIRENT,
      { ino: node.nodeid, off: index + 1, namelen: name.length, type: type >>> 12 },
      at + head,
    );
    request.put(name, at + head + DIRENT_SIZE);
    at += length;
  }
}
