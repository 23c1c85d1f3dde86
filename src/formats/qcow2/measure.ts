/**
 * How large a qcow2 image becomes: QEMU's numbers, so that who reserves space by the one can use the other.
 * Source: QEMU, block/qcow2.c, qcow2_measure; qcow2-bitmap.c, qcow2_get_persistent_dirty_bitmap_size.
 */

const L1_ENTRY_BYTES = 8;
const REFCOUNT_TABLE_ENTRY_BYTES = 8;
const BITMAP_TABLE_ENTRY_BYTES = 8;
/** A bitmap directory entry without its name. */
const BITMAP_ENTRY_BYTES = 24;

/** What decides about the size. */
export interface MeasuredGeometry {
  /** Bytes. */
  readonly virtualSize: number;
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly extendedL2: boolean;
}

/** Bytes of an image all of whose clusters are allocated. */
export function fullyAllocatedSize(geometry: MeasuredGeometry): number {
  const { clusterSize, extendedL2, refcountBits } = geometry;
  const dataSize = roundUp(geometry.virtualSize, clusterSize);
  const l2EntryBytes = extendedL2 ? 16 : 8;
  const l2Entries = roundUp(dataSize / clusterSize, clusterSize / l2EntryBytes);
  const l2Size = l2Entries * l2EntryBytes;
  const l1Size = roundUp(l2Size / clusterSize, clusterSize / L1_ENTRY_BYTES) * L1_ENTRY_BYTES;
  const counted = clusterSize + l2Size + l1Size + dataSize;
  return counted + refcountSize(counted / clusterSize, clusterSize, refcountBits);
}

/** Bytes of the refcount table and the blocks that count `clusters`, and themselves. */
function refcountSize(clusters: number, clusterSize: number, refcountBits: number): number {
  const perBlock = (clusterSize * 8) / refcountBits;
  const perTableCluster = clusterSize / REFCOUNT_TABLE_ENTRY_BYTES;
  let table = 0;
  let blocks = 0;
  for (;;) {
    const before = table + blocks;
    blocks = Math.ceil((clusters + table + blocks) / perBlock);
    table = Math.ceil(blocks / perTableCluster);
    if (table + blocks === before) return before * clusterSize;
  }
}

/** A persistent bitmap that would be copied along. */
export interface MeasuredBitmap {
  readonly name: string;
  /** Bytes that one bit covers. */
  readonly granularity: number;
}

/**
 * Bytes that bitmaps take in a new image.
 *
 * @param sourceSize bytes of the disk whose bitmaps they are
 */
export function bitmapsSize(
  bitmaps: readonly MeasuredBitmap[],
  sourceSize: number,
  clusterSize: number,
): number {
  let size = 0;
  let directorySize = 0;
  for (const { name, granularity } of bitmaps) {
    const bytes = Math.ceil(Math.ceil(sourceSize / granularity) / 8);
    const clusters = Math.ceil(bytes / clusterSize);
    size += clusters * clusterSize + roundUp(clusters * BITMAP_TABLE_ENTRY_BYTES, clusterSize);
    directorySize += roundUp(BITMAP_ENTRY_BYTES + Buffer.byteLength(name), 8);
  }
  return size + roundUp(directorySize, clusterSize);
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}
