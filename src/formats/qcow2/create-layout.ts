/**
 * Where the structures of a new image are: one after the other, without gaps.
 *
 *     header                1 cluster
 *     refcount table        as large as the refcount blocks need
 *     refcount blocks       as many as count all clusters of the file, these included
 *     L1 table
 *     LUKS area             encrypted images only
 *     L2 tables             preallocated images only
 *     data clusters         the same, unless they are in an external data file
 */

import { UsageError } from "../../errors.ts";
import { L1_SIZE_MAX, REFCOUNT_TABLE_SIZE_MAX } from "./header.ts";

/** Bytes of an L1 or refcount table entry. */
const ENTRY_BYTES = 8;

/** What decides about the layout. */
export interface CreateGeometry {
  /** Bytes, whole sectors. */
  readonly virtualSize: number;
  /** Bytes, a power of two. */
  readonly clusterSize: number;
  /** A power of two, 1 to 64. */
  readonly refcountBits: number;
  readonly extendedL2: boolean;
  /** Which clusters of the disk have a place from the start, and where. */
  readonly preallocate: "nothing" | "in the image" | "in the data file";
  /** Bytes of the LUKS header with its key material; default: there is none. */
  readonly luksBytes?: number;
}

/** Offsets and sizes in bytes, unless the name says clusters or entries. */
export interface CreateLayout {
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  readonly refcountBlocksOffset: number;
  readonly refcountBlocks: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  /** 0 without a LUKS area. */
  readonly luksOffset: number;
  readonly luksBytes: number;
  readonly l2Offset: number;
  /** 0, or one for each L1 entry. */
  readonly l2Tables: number;
  /** Where the cluster at guest offset 0 is: in the image, or in its data file. */
  readonly dataOffset: number;
  /** Clusters of the disk that L2 tables map: none or all. */
  readonly mappedClusters: number;
  /** Clusters of the image file. */
  readonly clusters: number;
}

/**
 * Entries of the L1 table of a disk.
 *
 * @throws {UsageError} the format has no such disks
 */
export function l1EntriesFor(
  {
    virtualSize,
    clusterSize,
    extendedL2,
  }: Pick<CreateGeometry, "virtualSize" | "clusterSize" | "extendedL2">,
  path: string,
): number {
  const l2EntryBytes = extendedL2 ? 2 * ENTRY_BYTES : ENTRY_BYTES;
  const l1Entries = Math.ceil(virtualSize / (clusterSize * (clusterSize / l2EntryBytes)));
  const l1Bytes = l1Entries * ENTRY_BYTES;
  if (l1Bytes <= L1_SIZE_MAX) return l1Entries;
  const reason = `a disk of ${virtualSize} bytes is too large for clusters of ${clusterSize} bytes: its L1 table would have ${l1Bytes} bytes, the limit is ${L1_SIZE_MAX}`;
  throw new UsageError(path, `${reason}; use larger clusters (-o cluster_size)`);
}

/**
 * Lay out a new image.
 *
 * @throws {UsageError} the format has no such disks
 */
export function layOut(geometry: CreateGeometry, path: string): CreateLayout {
  const { virtualSize, clusterSize, preallocate, luksBytes = 0 } = geometry;
  const l1Entries = l1EntriesFor(geometry, path);
  const l1Bytes = l1Entries * ENTRY_BYTES;
  const l1Clusters = Math.ceil(l1Bytes / clusterSize);
  const l2Tables = preallocate === "nothing" ? 0 : l1Entries;
  const mappedClusters = preallocate === "nothing" ? 0 : Math.ceil(virtualSize / clusterSize);
  const dataClusters = preallocate === "in the image" ? mappedClusters : 0;
  const luksClusters = Math.ceil(luksBytes / clusterSize);
  const counted = 1 + l1Clusters + luksClusters + l2Tables + dataClusters;
  const { blocks, tableClusters } = countRefcounts(counted, geometry, path);

  const refcountTableOffset = clusterSize;
  const refcountBlocksOffset = refcountTableOffset + tableClusters * clusterSize;
  const l1Offset = refcountBlocksOffset + blocks * clusterSize;
  const luksOffset = l1Offset + l1Clusters * clusterSize;
  const l2Offset = luksOffset + luksClusters * clusterSize;
  const clusters = counted + tableClusters + blocks;
  if (!Number.isSafeInteger(clusters * clusterSize)) {
    throw new UsageError(path, `the image would have ${clusters * clusterSize} bytes, above 2^53`);
  }
  return {
    refcountTableOffset,
    refcountTableClusters: tableClusters,
    refcountBlocksOffset,
    refcountBlocks: blocks,
    // As QEMU: a disk without bytes has no L1 table, and its offset is 0.
    l1Offset: l1Entries === 0 ? 0 : l1Offset,
    l1Entries,
    luksOffset: luksBytes === 0 ? 0 : luksOffset,
    luksBytes,
    l2Offset,
    l2Tables,
    dataOffset: preallocate === "in the data file" ? 0 : l2Offset + l2Tables * clusterSize,
    mappedClusters,
    clusters,
  };
}

/**
 * How many refcount blocks and clusters of refcount table count `others` clusters and themselves: each
 * round adds what the round before needs more, which is less every time.
 */
function countRefcounts(
  others: number,
  { clusterSize, refcountBits }: CreateGeometry,
  path: string,
): { blocks: number; tableClusters: number } {
  const blockEntries = (clusterSize * 8) / refcountBits;
  let blocks = 1;
  let tableClusters = 1;
  for (;;) {
    const blocksNeeded = Math.ceil((others + tableClusters + blocks) / blockEntries);
    const tableNeeded = Math.ceil((blocksNeeded * ENTRY_BYTES) / clusterSize);
    if (tableNeeded * clusterSize > REFCOUNT_TABLE_SIZE_MAX) {
      const reason = `preallocation needs a refcount table of ${tableNeeded * clusterSize} bytes, the limit is ${REFCOUNT_TABLE_SIZE_MAX}`;
      throw new UsageError(path, `${reason}; use larger clusters or smaller refcounts`);
    }
    if (blocksNeeded === blocks && tableNeeded === tableClusters) return { blocks, tableClusters };
    blocks = blocksNeeded;
    tableClusters = tableNeeded;
  }
}
