/**
 * The interface between format drivers and the block layer. A driver says where bytes are; the block
 * layer reads them, walks the backing chain and fills zeros. Only compressed clusters are read by the
 * driver itself.
 */

import type { Storage } from "../storage/storage.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { ClusterCache } from "./compression/cluster-cache.ts";
import type { DataCipher } from "./encryption/image-key.ts";

export const FORMAT_NAMES = ["raw", "qcow2", "qed"] as const;
export type FormatName = (typeof FORMAT_NAMES)[number];

/** What a run of guest bytes is, in one image alone. */
export const EXTENT = {
  /** Nothing here: the backing file shows through, or zeros without one. */
  unallocated: 0,
  /** Reads as zeros, whatever the backing file has. */
  zero: 1,
  /** At `hostOffset` of the data storage. */
  data: 2,
  /** A compressed cluster: one at a time, only the driver reads it. */
  compressed: 3,
} as const;
export type ExtentKind = (typeof EXTENT)[keyof typeof EXTENT];

/** No host offset: of unallocated and plain zero extents. */
export const NO_OFFSET = -1;

/** Block status of a run. Made once and overwritten by every mapping: hot paths make no garbage. */
export class Extent {
  kind: ExtentKind = EXTENT.unallocated;
  /** Bytes, > 0. */
  length = 0;
  /**
   * data: where the first byte is. compressed: where the stream of the cluster starts. zero and
   * unallocated: a cluster that is allocated all the same (preallocated), or NO_OFFSET.
   */
  hostOffset: number = NO_OFFSET;
  /** compressed: an upper bound of the stream's length in bytes, else 0. */
  compressedBytes = 0;
}

/** What an image says about the file below it; names are as the image spells them. */
export interface BackingReference {
  readonly name: string;
  /** The format that the image states. */
  readonly format: string | undefined;
}

/** One internal snapshot, as its table entry describes it. */
export interface SnapshotInfo {
  /** Its own as long as the image is open. */
  readonly number: number;
  readonly id: string;
  readonly name: string;
  /** Bytes of VM state; not shown as part of the disk. */
  readonly vmStateSize: number;
  readonly seconds: number;
  readonly nanoseconds: number;
  /** Guest clock, nanoseconds. */
  readonly vmClock: bigint;
  readonly instructionCount: bigint | undefined;
  /** Bytes. */
  readonly virtualSize: number;
}

/** What `info` prints about a format, in the names of qemu-img's JSON; plain data. */
export type FormatDetails = { readonly [field: string]: JsonValue };
export type JsonValue =
  | string
  | number
  | boolean
  | null
  | readonly JsonValue[]
  | { readonly [field: string]: JsonValue };

/** What a thread brings along: buffers that its images share. */
export interface ThreadResources {
  readonly clusterCache: ClusterCache;
  /** Its counters of the device that the images are for; undefined: nobody asks for them. */
  readonly counters?: Float64Array | undefined;
}

/** An external data file as an image refers to it. */
export interface DataFileReference {
  readonly name: string;
  /** The data file alone always equals the disk. */
  readonly raw: boolean;
}

/** One image, open, as one thread sees it. */
export interface FormatImage {
  readonly format: FormatName;
  /** The image file. */
  readonly storage: Storage;
  /** Where host offsets of data extents point: the image file, or its external data file. */
  readonly dataStorage: Storage;
  /** Bytes. */
  readonly virtualSize: number;
  /** Bytes, a power of two; of raw images, 512. */
  readonly clusterSize: number;
  readonly backingFile: BackingReference | undefined;
  /** Data extents are encrypted; zeros are, that is: holes of the host are no zeros. */
  readonly encrypted: boolean;
  /** What encrypts them; undefined: nothing does, or the key was not asked for. */
  readonly cipher: DataCipher | undefined;
  /**
   * Block status at `guestOffset` and how far it holds, in this image alone (not its backing file).
   * Does no more I/O than `guestOffset` needs; adjacent extents may be alike.
   *
   * @param guestOffset bytes, 0 <= guestOffset < virtualSize
   * @param maxLength bytes, > 0; the extent is never longer
   * @param out overwritten
   * @throws {CorruptionError} a table entry that cannot be right. What lies past the end of the file
   *   is no error: it reads as zeros, as for QEMU
   */
  mapExtent(guestOffset: number, maxLength: number, out: Extent): void;

  /** True if the whole file was probably allocated ahead: data extents may be holes on the host. */
  mayHaveHostHoles(): boolean;

  /**
   * Read a part of the compressed cluster that `extent` describes.
   *
   * @param skip bytes of the cluster before the part; skip + length <= clusterSize
   * @throws {CorruptionError} the stream is damaged, or shorter than the cluster
   */
  readCompressed(
    extent: Extent,
    target: NativeBuffer,
    start: number,
    skip: number,
    length: number,
  ): void;

  /** Internal snapshots in the order of the table, read one after the other: there may be many. */
  readSnapshots(): Iterable<SnapshotInfo>;

  /**
   * The image as it was at a snapshot.
   *
   * @param number of `readSnapshots`
   * @throws {TsimgfsError} ESTALE: there is no such snapshot any more
   */
  openSnapshot(number: number): FormatImage;

  /** Whether the snapshot of this number is still there. */
  hasSnapshot(number: number): boolean;

  /** Format-specific rows of `info`; opens nothing that the image refers to. */
  describe(): FormatDescription;
}

/** What a format says of an image for people: see `info`. */
export interface FormatDescription {
  /** Bytes, or undefined where the format has no clusters. */
  readonly clusterSize: number | undefined;
  readonly encrypted: boolean;
  readonly dirty: boolean;
  readonly snapshots: readonly SnapshotInfo[];
  readonly specific: FormatDetails | undefined;
}
