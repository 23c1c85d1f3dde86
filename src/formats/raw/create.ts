/** New raw images; and what new images of all formats need of a file: emptied, and with space of its own. */

import { StorageError } from "../../errors.ts";
import type { WritableStorage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";

/** off: sparse. falloc: the host sets space aside. full: zeros are written. The words are QEMU's. */
export const RAW_PREALLOCATIONS = ["off", "falloc", "full"] as const;
export type RawPreallocation = (typeof RAW_PREALLOCATIONS)[number];

/** The unit of a disk, bytes. */
export const SECTOR_SIZE = 512;

/**
 * How a new image is written: in pieces that take about a tenth of a second at the most, between which whoever lets
 * it be written may stop. What was written until then is no image.
 */
export type CreationPieces = Generator<void, void, void>;

/** Zeros are written in pieces of this many bytes. */
const ZEROS_SIZE = 1024 * 1024;
/** The host sets aside so many bytes at once: in memory it takes its time, and zeros them. */
const ALLOCATED_SIZE = 256 * 1024 * 1024;

export interface RawCreateOptions {
  /** Bytes, whole sectors. */
  readonly virtualSize: number;
  readonly preallocation: RawPreallocation;
}

/**
 * Make `storage` a raw image, durably. Its old contents are lost; of a block device, the first sector
 * only, as with QEMU: that is where another format would be recognised.
 *
 * @throws {StorageError} ENOSPC, …
 */
export function* createRaw(
  storage: WritableStorage,
  { virtualSize, preallocation }: RawCreateOptions,
): CreationPieces {
  yield* emptyStorage(storage, virtualSize, { zeros: Math.min(SECTOR_SIZE, virtualSize) });
  if (preallocation !== "off") yield* allocateStart(storage, virtualSize, preallocation);
  storage.sync();
}

/**
 * Check that a file can be as long as a new image needs it. Nothing is changed.
 *
 * @throws {StorageError} ENOSPC: a device that is too small; EFBIG: the host has no such files
 */
export function requireLength(storage: WritableStorage, length: number): void {
  const current = storage.currentLength();
  if (length <= current) return;
  if (!storage.resizable) {
    const reason = `the image needs ${length} bytes, the device has ${current}`;
    throw new StorageError("ENOSPC", storage.path, reason);
  }
  try {
    storage.setLength(length);
  } catch (cause) {
    if (!(cause instanceof StorageError) || cause.code !== "EFBIG") throw cause;
    const reason = `the host's file system has no files of ${length} bytes`;
    throw new StorageError("EFBIG", storage.path, reason, { cause });
  }
  storage.setLength(current);
}

/**
 * Empty a file and give it `length` bytes that read as zeros. A block device keeps its length.
 *
 * @param zeros how many bytes of a block device are to read as zeros afterwards
 * @throws {StorageError}
 */
export function* emptyStorage(
  storage: WritableStorage,
  length: number,
  { zeros }: { zeros: number },
): CreationPieces {
  if (storage.currentLength() > 0) {
    // What was there before stops being an image for good before anything else of it goes.
    storage.zeroAt(0, SECTOR_SIZE, "keep");
    storage.sync();
  }
  if (storage.resizable) {
    storage.setLength(0);
    storage.setLength(length);
    return;
  }
  for (let offset = 0; offset < zeros; offset += ALLOCATED_SIZE) {
    storage.zeroAt(offset, Math.min(ALLOCATED_SIZE, zeros - offset), "release");
    yield;
  }
}

/**
 * Let the host allocate the first `length` bytes of an emptied file, which read as zeros before and after.
 *
 * @throws {StorageError} ENOSPC
 */
export function* allocateStart(
  storage: WritableStorage,
  length: number,
  preallocation: "falloc" | "full",
): CreationPieces {
  if (length === 0) return;
  if (preallocation === "falloc") {
    for (let offset = 0; offset < length; offset += ALLOCATED_SIZE) {
      storage.preallocate(offset, Math.min(ALLOCATED_SIZE, length - offset));
      yield;
    }
    // Not every host has fallocate(2); all of them have zeros.
    if (storage.allocatedSize() >= length) return;
  }
  const zeros = NativeBuffer.allocate(Math.min(length, ZEROS_SIZE));
  for (let offset = 0; offset < length; offset += ZEROS_SIZE) {
    storage.writeAt(zeros, 0, Math.min(ZEROS_SIZE, length - offset), offset);
    yield;
  }
}
