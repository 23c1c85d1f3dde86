/** New qcow2 images: checked and laid out first, then written, the header last. */

import type { WritableStorage } from "../../storage/storage.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { luksAreaSize, writeLuksArea } from "../encryption/luks-area.ts";
import {
  allocateStart,
  type CreationPieces,
  createRaw,
  emptyStorage,
  SECTOR_SIZE,
} from "../raw/create.ts";
import { checkCreateOptions, type Qcow2CreateOptions } from "./create-check.ts";
import { encodeHeaderCluster } from "./create-header.ts";
import { type CreateLayout, layOut } from "./create-layout.ts";
import { writeTables } from "./create-tables.ts";

/** A new image of which everything is known and nothing is written. */
export interface PlannedQcow2 {
  readonly options: Qcow2CreateOptions;
  readonly layout: CreateLayout;
  readonly header: NativeBuffer;
}

/**
 * Check what is wanted, and lay it out. Touches no file.
 *
 * @param path the image, for error messages
 * @throws {UsageError} the options contradict each other, or qcow2 has no such image
 */
export function planQcow2(wanted: Qcow2CreateOptions, path: string): PlannedQcow2 {
  checkCreateOptions(wanted, path);
  const inDataFile = wanted.dataFile !== undefined;
  // A data file that alone is the disk needs a place for every cluster of it: nothing may read as
  // zeros because it is not allocated.
  const needsTables = wanted.dataFile?.raw === true && wanted.preallocation === "off";
  const options = needsTables ? { ...wanted, preallocation: "metadata" as const } : wanted;
  const place = inDataFile ? "in the data file" : "in the image";
  const { encryption } = options;
  const layout = layOut(
    {
      ...options,
      preallocate: options.preallocation === "off" ? "nothing" : place,
      luksBytes: encryption?.format === "luks" ? luksAreaSize(encryption.luks.suite) : 0,
    },
    path,
  );
  return { options, layout, header: encodeHeaderCluster(options, layout, path) };
}

/** Bytes of the image file. */
export function imageLength({ options, layout }: PlannedQcow2): number {
  return layout.clusters * options.clusterSize;
}

/**
 * Write a planned image, durably. The start of the header comes when all else is on disk: until
 * then, and if anything fails, the file is no image.
 *
 * @param files what they contained is lost
 * @throws {StorageError} ENOSPC, …
 */
export function* writeQcow2(
  plan: PlannedQcow2,
  files: { storage: WritableStorage; dataStorage: WritableStorage | undefined },
): CreationPieces {
  const { options, layout, header } = plan;
  const { storage, dataStorage } = files;
  const { preallocation, clusterSize, refcountBits, virtualSize } = options;
  const space = preallocation === "metadata" ? "off" : preallocation;
  const length = imageLength(plan);
  // First, so that an old image is gone before the data file that it may have had in common.
  yield* emptyStorage(storage, length, { zeros: length });
  if (dataStorage !== undefined) {
    yield* createRaw(dataStorage, { virtualSize, preallocation: space });
  }
  if (dataStorage === undefined && space !== "off") yield* allocateStart(storage, length, space);
  const l2EntryBytes = options.extendedL2 ? 16 : 8;
  yield* writeTables(storage, layout, { clusterSize, refcountBits, l2EntryBytes });
  if (options.encryption?.format === "luks") {
    writeLuksArea(storage, layout.luksOffset, options.encryption.luks);
  }
  // The sector with the magic is the last: a sector gets to the disk as a whole or not at all.
  storage.writeAt(header, SECTOR_SIZE, clusterSize - SECTOR_SIZE, SECTOR_SIZE);
  storage.sync();
  storage.writeAt(header, 0, SECTOR_SIZE, 0);
  storage.sync();
}
