/** Directories of the tree: the root, and the snapshots of a device. */

import type { Capacity, DirectoryEntry, DirectoryNode, NodeAttributes, TreeNode } from "./node.ts";

export const DIRECTORY_BLOCK_SIZE = 4096;
const ATTRIBUTES_VALID_SECONDS = 60;

/** What a directory is, apart from its entries. */
export interface DirectoryProperties {
  readonly nodeid: number;
  readonly parent: DirectoryNode | undefined;
  /** Seconds since the epoch. */
  readonly modifiedAt: number;
  readonly xattrs: ReadonlyMap<string, string>;
  /** Its entries never change. */
  readonly isFixed: boolean;
}

/** The entries of a directory. There may be many: a node is made when it is asked for. */
export interface DirectoryContent {
  /** Called when the names are first needed; they are different from each other. */
  names(): readonly string[];
  /** The node of the name at this index. */
  node(index: number): TreeNode;
  /** Of a directory that is not fixed: another one when the names may have changed. */
  version?(): number;
}

/** What stat(2) tells of a directory; arguments as the fields of NodeAttributes. */
export function directoryAttributes(
  nodeid: number,
  modifiedAt: number,
  validSeconds: number,
): NodeAttributes {
  return {
    nodeid,
    isDirectory: true,
    isWritable: false,
    size: 0,
    blocks: 0,
    blockSize: DIRECTORY_BLOCK_SIZE,
    modifiedAt,
    links: 2,
    validSeconds,
  };
}

export class Directory implements DirectoryNode {
  readonly kind = "directory";
  readonly isFixed: boolean;
  readonly nodeid: number;
  readonly parent: DirectoryNode | undefined;
  readonly #properties: DirectoryProperties;
  readonly #content: DirectoryContent;
  #version: number | undefined;
  #names: readonly string[] | undefined;
  #indexes: ReadonlyMap<string, number> | undefined;

  constructor(properties: DirectoryProperties, content: DirectoryContent) {
    this.nodeid = properties.nodeid;
    this.parent = properties.parent;
    this.isFixed = properties.isFixed;
    this.#properties = properties;
    this.#content = content;
  }

  attributes(): NodeAttributes {
    const validSeconds = this.isFixed ? ATTRIBUTES_VALID_SECONDS : 0;
    return directoryAttributes(this.nodeid, this.#properties.modifiedAt, validSeconds);
  }

  capacity(): Capacity {
    let size = 0;
    for (let index = 0; ; index++) {
      const entry = this.entryAt(index);
      if (entry === undefined) return { blockSize: DIRECTORY_BLOCK_SIZE, size };
      if (entry.node.kind === "file") size += entry.node.capacity().size;
    }
  }

  xattrs(): ReadonlyMap<string, string> {
    return this.#properties.xattrs;
  }

  refresh(): void {
    if (this.isFixed) return;
    const version = this.#content.version?.();
    if (version === this.#version) return;
    this.#version = version;
    this.#names = undefined;
    this.#indexes = undefined;
  }

  lookup(name: string): TreeNode | undefined {
    this.#names ??= this.#content.names();
    this.#indexes ??= new Map(this.#names.map((known, index) => [known, index]));
    const index = this.#indexes.get(name);
    return index === undefined ? undefined : this.#content.node(index);
  }

  entryAt(index: number): DirectoryEntry | undefined {
    this.#names ??= this.#content.names();
    const name = this.#names[index];
    return name === undefined ? undefined : { name, node: this.#content.node(index) };
  }
}
