/** Opens images that are laid out in memory, and lists their extents in words. */

import { ClusterCache } from "../../../src/formats/compression/cluster-cache.ts";
import { EXTENT, Extent, type FormatImage } from "../../../src/formats/driver.ts";
import { readQcow2Layout } from "../../../src/formats/qcow2/layout.ts";
import { Qcow2Image } from "../../../src/formats/qcow2/qcow2-image.ts";
import { readQedLayout } from "../../../src/formats/qed/layout.ts";
import { QedImage } from "../../../src/formats/qed/qed-image.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { MemoryStorage } from "../memory-storage.ts";

/** Small, so that tables do not stay in the cache by chance. */
const TABLE_CACHE_SIZE = 64 * 1024;

export function openQcow2(bytes: Uint8Array, dataFile?: Uint8Array): Qcow2Image {
  const storage = new MemoryStorage("disk.qcow2", bytes);
  const dataStorage = dataFile === undefined ? undefined : new MemoryStorage("disk.data", dataFile);
  const layout = readQcow2Layout(storage, { tableCacheMax: TABLE_CACHE_SIZE, keepsL1: true });
  return new Qcow2Image(
    layout,
    { cipher: undefined, storage, dataStorage },
    { clusterCache: new ClusterCache() },
  );
}

export function openQed(bytes: Uint8Array): QedImage {
  const storage = new MemoryStorage("disk.qed", bytes);
  return new QedImage(readQedLayout(storage, TABLE_CACHE_SIZE), storage);
}

export interface MappedExtent {
  readonly kind: string;
  readonly start: number;
  readonly length: number;
  /** -1: none. */
  readonly host: number;
}

function kindName(extent: Extent): string {
  const found = Object.entries(EXTENT).find(([, kind]) => kind === extent.kind);
  return found?.[0] ?? `kind ${extent.kind}`;
}

/** The extent at one guest offset. */
export function extentAt(
  image: FormatImage,
  start: number,
  maxLength = image.virtualSize,
): MappedExtent {
  const extent = new Extent();
  image.mapExtent(start, maxLength, extent);
  return { kind: kindName(extent), start, length: extent.length, host: extent.hostOffset };
}

/** All extents of a disk; those that continue each other are one. */
export function extentsOf(image: FormatImage): MappedExtent[] {
  const extents: MappedExtent[] = [];
  for (let start = 0; start < image.virtualSize; ) {
    const next = extentAt(image, start, image.virtualSize - start);
    const last = extents.at(-1);
    const continues =
      last !== undefined &&
      last.kind === next.kind &&
      next.kind !== "compressed" &&
      next.host === (last.host < 0 ? -1 : last.host + last.length);
    if (continues) extents.splice(-1, 1, { ...last, length: last.length + next.length });
    else extents.push(next);
    start += next.length;
  }
  return extents;
}

/** The bytes of one compressed cluster from `skip` on. */
export function readCompressed(image: FormatImage, guestOffset: number, length: number): Buffer {
  const extent = new Extent();
  image.mapExtent(guestOffset, length, extent);
  const target = NativeBuffer.allocate(length);
  image.readCompressed(extent, target, 0, guestOffset % image.clusterSize, length);
  return Buffer.from(target.bytes);
}
