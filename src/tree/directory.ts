/** Directories of the tree: the root, and the snapshots of a device. */

import type { Capacity, DirectoryEntry, DirectoryNode, NodeAttributes, TreeNode } from "./node.ts";

const BLOCK_SIZE = 4096;
const ATTRIBUTES_VALID_SECONDS = 60;

/** What a directory is, apart from its entries. */
export interface DirectoryProperties {
  readonly nodeid: number;
  readonly parent: DirectoryNode | undefined;
  /** Seconds since the epoch. */
  readonly modifiedAt: number;
  readonly xattrs: ReadonlyMap<string, string>;
}

export class Directory implements DirectoryNode {
  readonly kind = "directory";
  readonly nodeid: number;
  readonly parent: DirectoryNode | undefined;
  readonly #properties: DirectoryProperties;
  readonly #makeEntries: () => readonly DirectoryEntry[];
  #entries: readonly DirectoryEntry[] | undefined;
  #byName: ReadonlyMap<string, DirectoryEntry> | undefined;

  /** @param makeEntries called when the entries are first asked for */
  constructor(properties: DirectoryProperties, makeEntries: () => readonly DirectoryEntry[]) {
    this.nodeid = properties.nodeid;
    this.parent = properties.parent;
    this.#properties = properties;
    this.#makeEntries = makeEntries;
  }

  attributes(): NodeAttributes {
    return {
      nodeid: this.nodeid,
      isDirectory: true,
      size: 0,
      blocks: 0,
      blockSize: BLOCK_SIZE,
      modifiedAt: this.#properties.modifiedAt,
      links: 2,
      validSeconds: ATTRIBUTES_VALID_SECONDS,
    };
  }

  capacity(): Capacity {
    const size = this.entries().reduce((sum, entry) => {
      const node = entry.node();
      return node.kind === "file" ? sum + node.capacity().size : sum;
    }, 0);
    return { blockSize: BLOCK_SIZE, size };
  }

  xattrs(): ReadonlyMap<string, string> {
    return this.#properties.xattrs;
  }

  lookup(name: string): TreeNode | undefined {
    this.#byName ??= new Map(this.entries().map((entry) => [entry.name, entry]));
    return this.#byName.get(name)?.node();
  }

  entries(): readonly DirectoryEntry[] {
    this.#entries ??= this.#makeEntries();
    return this.#entries;
  }
}
