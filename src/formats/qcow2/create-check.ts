/** What a new image may be: QEMU's rules, said in the words of the options. */

import { UsageError } from "../../errors.ts";
import type { RawPreallocation } from "../raw/create.ts";
import type { CreateHeader } from "./create-header.ts";
import {
  BACKING_FILE_SIZE_MAX,
  CLUSTER_BITS_MAX,
  CLUSTER_BITS_MIN,
  EXTENDED_L2_CLUSTER_BITS_MIN,
  REFCOUNT_ORDER_MAX,
} from "./header.ts";
import { DATA_FILE_NAME_MAX } from "./header-extensions.ts";

/** metadata: tables for the whole disk, and places for its clusters in a sparse file. */
export type Preallocation = RawPreallocation | "metadata";
export const PREALLOCATIONS: readonly Preallocation[] = ["off", "metadata", "falloc", "full"];

/** A new qcow2 image, as it is wanted. */
export interface Qcow2CreateOptions extends CreateHeader {
  readonly preallocation: Preallocation;
}

/** Bytes. */
const CLUSTER_SIZE_MIN = 2 ** CLUSTER_BITS_MIN;
const CLUSTER_SIZE_MAX = 2 ** CLUSTER_BITS_MAX;
const EXTENDED_L2_CLUSTER_SIZE_MIN = 2 ** EXTENDED_L2_CLUSTER_BITS_MIN;
const REFCOUNT_BITS_MAX = 2 ** REFCOUNT_ORDER_MAX;
/** The only width that version 2 has. */
const V2_REFCOUNT_BITS = 16;
/** Bytes. Of backing files the format's limit, of data files ours: readers keep to the same for both. */
const NAME_SIZE_MAX = Math.min(BACKING_FILE_SIZE_MAX, DATA_FILE_NAME_MAX);

const isPowerOfTwo = (value: number): boolean => value > 0 && Number.isInteger(Math.log2(value));

/**
 * Refuse what is out of range, and what contradicts itself.
 *
 * @throws {UsageError}
 */
export function checkCreateOptions(options: Qcow2CreateOptions, path: string): void {
  const { clusterSize, refcountBits, extendedL2, backingFile, dataFile } = options;
  const refuseIf = (condition: boolean, reason: string): void => {
    if (condition) throw new UsageError(path, reason);
  };
  refuseIf(
    !isPowerOfTwo(clusterSize) || clusterSize < CLUSTER_SIZE_MIN || clusterSize > CLUSTER_SIZE_MAX,
    `cluster_size ${clusterSize} is not a power of two in ${CLUSTER_SIZE_MIN}..${CLUSTER_SIZE_MAX}`,
  );
  refuseIf(
    !isPowerOfTwo(refcountBits) || refcountBits > REFCOUNT_BITS_MAX,
    `refcount_bits ${refcountBits} is not a power of two in 1..${REFCOUNT_BITS_MAX}`,
  );
  if (options.version === 2) refuseInVersion2(options, path);
  refuseIf(
    extendedL2 && clusterSize < EXTENDED_L2_CLUSTER_SIZE_MIN,
    `extended_l2 needs a cluster_size of ${EXTENDED_L2_CLUSTER_SIZE_MIN} at least, not ${clusterSize}`,
  );
  refuseIf(
    dataFile?.raw === true && backingFile !== undefined,
    "data_file_raw cannot be on with a backing file: the data file alone would not be the disk",
  );
  refuseIf(
    backingFile !== undefined && options.preallocation !== "off" && !extendedL2,
    "preallocation with a backing file needs extended_l2: else it would hide the backing file",
  );
  for (const [what, file] of Object.entries({ backing: backingFile, data: dataFile })) {
    const size = Buffer.byteLength(file?.name ?? "");
    refuseIf(
      size > NAME_SIZE_MAX,
      `the ${what} file's name has ${size} bytes, the limit is ${NAME_SIZE_MAX}`,
    );
  }
}

function refuseInVersion2(options: Qcow2CreateOptions, path: string): void {
  const newer: readonly (readonly [used: boolean, option: string])[] = [
    [options.refcountBits !== V2_REFCOUNT_BITS, `refcount_bits other than ${V2_REFCOUNT_BITS}`],
    [options.extendedL2, "extended_l2"],
    [options.lazyRefcounts, "lazy_refcounts"],
    [options.compressionType !== "zlib", `compression_type ${options.compressionType}`],
    [options.dataFile !== undefined, "data_file"],
  ];
  const first = newer.find(([used]) => used);
  if (first !== undefined) throw new UsageError(path, `${first[1]} needs compat 1.1, not 0.10`);
}
