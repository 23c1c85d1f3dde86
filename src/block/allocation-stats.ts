/** Allocation statistics of an image: what its file and its disk consist of, in the names of their JSON. */

import { printable, TsimgfsError } from "../errors.ts";
import type { FileAllocation } from "../formats/allocation.ts";
import type { JsonValue } from "../formats/driver.ts";
import type { FormatWriting } from "../formats/formats.ts";
import { countAllocation, countDataFile, reservedBytes } from "../formats/image-allocation.ts";
import type { Disk } from "./disk.ts";
import { countDisk, mountedWorkMax } from "./guest-allocation.ts";
import type { SharedLayer } from "./open-chain.ts";

/** Fields of the statistics, in the order in which they are shown. */
export type AllocationFields = Readonly<Record<string, JsonValue>>;

/**
 * Statistics of an image that is not mounted.
 *
 * @param top the image itself, as it was opened for `disk`
 * @throws {CorruptionError | UnsupportedError | StorageError} they cannot be made
 */
export function allocationOf(disk: Disk, top: SharedLayer): AllocationFields {
  return {
    ...fileFields(disk, top, undefined),
    ...diskFields(disk, Number.POSITIVE_INFINITY),
  };
}

/**
 * Statistics of an image that is mounted, while others use it. What cannot be counted has the reason in its
 * place: `{"error": "FILE: reason"}`.
 *
 * @param writing what the writers of the image share; undefined: it is only read
 */
export function mountedAllocationOf(
  disk: Disk,
  top: SharedLayer,
  writing: FormatWriting | undefined,
): AllocationFields {
  return {
    ...orError("alloc-info", () => fileFields(disk, top, writing)),
    ...orError("guest", () => diskFields(disk, mountedWorkMax(disk))),
    reserved: reservedBytes(top.layout, writing),
  };
}

function orError(field: string, count: () => AllocationFields): AllocationFields {
  try {
    return count();
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
    return { [field]: { error: printable(error.message) } };
  }
}

function fileFields(
  { chain }: Disk,
  { dataFile, layout }: SharedLayer,
  writing: FormatWriting | undefined,
): AllocationFields {
  const { storage, dataStorage } = chain.image;
  const fields: Record<string, JsonValue> = {
    "alloc-info": allocationFields(countAllocation(layout, storage, writing)),
  };
  if (dataFile !== undefined) {
    const allocation = allocationFields(countDataFile(dataStorage));
    fields["data-file"] = { filename: dataFile.path, "alloc-info": allocation };
  }
  return fields;
}

function allocationFields(allocation: FileAllocation): AllocationFields {
  return {
    "file-size": allocation.fileSize,
    "used-data": allocation.usedData,
    "used-zero": allocation.usedZero,
    "used-discarded": allocation.usedDiscarded,
    "used-overrun": allocation.usedOverrun,
    "unused-data": allocation.unusedData,
    "unused-zero": allocation.unusedZero,
    "unused-discarded": allocation.unusedDiscarded,
  };
}

function diskFields(disk: Disk, workMax: number): AllocationFields {
  const { guest, layers, nowhere } = countDisk(disk, workMax);
  return {
    guest: { ...guest },
    layers: layers.map((layer) => ({ ...layer })),
    "no-layer": nowhere,
  };
}
