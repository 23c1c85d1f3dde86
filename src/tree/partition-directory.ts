/**
 * NAME.partitions: the partitions of a device, as its table says at that moment. The table is read for each
 * lookup and each listing, so that whoever has changed it sees the change, by whichever way he did.
 */

import type { PartitionEntry, PartitionTable } from "../block/partitions/partition-entry.ts";
import { DIRECTORY_BLOCK_SIZE, directoryAttributes } from "./directory.ts";
import { DEVICE_SUFFIX } from "./names.ts";
import type { Capacity, DirectoryEntry, DirectoryNode, NodeAttributes, TreeNode } from "./node.ts";

const NOT_FROM_CACHE_SECONDS = 0;

export interface PartitionDirectoryProperties {
  readonly nodeid: number;
  readonly parent: DirectoryNode;
  /** Seconds since the epoch. */
  readonly modifiedAt: () => number;
  readonly readTable: () => PartitionTable;
  readonly nodeOf: (entry: PartitionEntry) => TreeNode;
}

export class PartitionDirectory implements DirectoryNode {
  readonly kind = "directory";
  readonly isFixed = false;
  readonly nodeid: number;
  readonly parent: DirectoryNode;
  readonly #properties: PartitionDirectoryProperties;
  #partitions: readonly PartitionEntry[] = [];

  constructor(properties: PartitionDirectoryProperties) {
    this.nodeid = properties.nodeid;
    this.parent = properties.parent;
    this.#properties = properties;
  }

  attributes(): NodeAttributes {
    const { modifiedAt } = this.#properties;
    return directoryAttributes(this.nodeid, modifiedAt(), NOT_FROM_CACHE_SECONDS);
  }

  capacity(): Capacity {
    return { blockSize: DIRECTORY_BLOCK_SIZE, size: 0 };
  }

  xattrs(): ReadonlyMap<string, string> {
    const { kind, sectorSize } = this.#properties.readTable();
    return new Map([
      ["user.tsimgfs.partition-table", kind],
      ["user.tsimgfs.sector-size", String(sectorSize)],
    ]);
  }

  refresh(): void {
    this.#partitions = this.#properties.readTable().partitions;
  }

  lookup(name: string): TreeNode | undefined {
    const entry = this.#partitions.find(({ number }) => name === `${number}${DEVICE_SUFFIX}`);
    return entry && this.#properties.nodeOf(entry);
  }

  entryAt(index: number): DirectoryEntry | undefined {
    const entry = this.#partitions[index];
    if (entry === undefined) return undefined;
    return { name: `${entry.number}${DEVICE_SUFFIX}`, node: this.#properties.nodeOf(entry) };
  }
}
