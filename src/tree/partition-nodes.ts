/** The partitions of one device in the tree: their directory, and a node for each that was ever seen. */

import type { Disk } from "../block/disk.ts";
import type {
  PartitionEntry,
  PartitionedDisk,
  PartitionTable,
} from "../block/partitions/partition-entry.ts";
import { readPartitionTable } from "../block/partitions/partition-table.ts";
import { IMAGE_XATTR } from "../storage/fixed-length.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { Device } from "./device.ts";
import type { DirectoryNode } from "./node.ts";
import { Partition } from "./partition.ts";
import { PartitionDirectory } from "./partition-directory.ts";
import type { PartitionWindow, PartitionWindows } from "./partition-windows.ts";
import type { TruncatedFiles } from "./truncated-files.ts";

/** Nodes that a thread keeps; the one that was found first goes first. */
const NODES_KEPT_MAX = 512;

export interface PartitionNodesProperties {
  readonly disk: Disk;
  readonly device: Device;
  /** Of the image, for messages. */
  readonly imagePath: string;
  /** The window with sequence number n has the node id `firstNodeid` + n. */
  readonly firstNodeid: number;
  readonly windows: PartitionWindows;
  /** Those of the device; undefined: it is read-only. */
  readonly truncated: TruncatedFiles | undefined;
}

export class PartitionNodes {
  readonly #properties: PartitionNodesProperties;
  readonly #nodes = new Map<number, Partition>();

  constructor(properties: PartitionNodesProperties) {
    this.#properties = properties;
  }

  directory(nodeid: number, parent: DirectoryNode): PartitionDirectory {
    const { device, windows } = this.#properties;
    return new PartitionDirectory({
      nodeid,
      parent,
      modifiedAt: () => device.attributes().modifiedAt,
      readTable: () => this.#readTable(),
      nodeOf: (entry) => this.#make(windows.register(entry), entry),
    });
  }

  /** The partition with this window; undefined if it is not known any more. */
  node(sequence: number): Partition | undefined {
    const { windows } = this.#properties;
    if (!windows.has(sequence)) return undefined;
    const known = this.#nodes.get(sequence);
    if (known !== undefined) return known;
    const window = windows.find(sequence);
    if (window === undefined) return undefined;
    const [oldest] = this.#nodes.keys();
    if (oldest !== undefined && this.#nodes.size >= NODES_KEPT_MAX) this.#nodes.delete(oldest);
    const node = this.#make(sequence, window);
    this.#nodes.set(sequence, node);
    return node;
  }

  #make(sequence: number, window: PartitionWindow): Partition {
    const { firstNodeid, device, imagePath, truncated } = this.#properties;
    const properties = {
      nodeid: firstNodeid + sequence,
      device,
      path: imagePath,
      truncated,
      isCurrent: () => this.#find(window) !== undefined,
      xattrs: () => partitionXattrs(imagePath, window, this.#find(window)),
    };
    return new Partition(properties, window);
  }

  /** What the table says of a window, now. */
  #find({ number, start, size }: PartitionWindow): PartitionEntry | undefined {
    return this.#readTable().partitions.find(
      (entry) => entry.number === number && entry.start === start && entry.size === size,
    );
  }

  #readTable(): PartitionTable {
    const { disk } = this.#properties;
    const size = disk.currentSize();
    const read: PartitionedDisk["read"] = (offset, length) => {
      const target = NativeBuffer.allocate(length);
      // To look at a table is no use of the disk that should copy anything into its image.
      disk.inspect(() => disk.chain.read(offset, length, target, 0));
      return target.bytes;
    };
    return readPartitionTable({ size, read });
  }
}

function partitionXattrs(
  imagePath: string,
  { number, start, size }: PartitionWindow,
  entry: PartitionEntry | undefined,
): ReadonlyMap<string, string> {
  const xattrs = new Map([
    [IMAGE_XATTR, imagePath],
    ["user.tsimgfs.partition-number", String(number)],
    ["user.tsimgfs.partition-start", String(start)],
    ["user.tsimgfs.partition-size", String(size)],
  ]);
  if (entry === undefined) return xattrs;
  xattrs.set("user.tsimgfs.partition-type", entry.type);
  if (entry.uuid !== undefined) xattrs.set("user.tsimgfs.partition-uuid", entry.uuid);
  if (entry.name !== "") xattrs.set("user.tsimgfs.partition-name", entry.name);
  return xattrs;
}
