/** What `info` says of a qcow2 image, in the names of qemu-img. */

import type { Storage } from "../../storage/storage.ts";
import type { FormatDescription, JsonValue, SnapshotInfo } from "../driver.ts";
import { readBitmapDirectory } from "./bitmap-directory.ts";
import { describeEncryption, isEncryptedQcow2 } from "./encryption.ts";
import { COMPATIBLE_LAZY_REFCOUNTS, INCOMPATIBLE } from "./features.ts";
import { COMPRESSION_TYPE } from "./header.ts";
import type { Qcow2Layout } from "./layout.ts";

export function describeQcow2(
  layout: Qcow2Layout,
  storage: Storage,
  snapshots: readonly SnapshotInfo[],
): FormatDescription {
  const { header } = layout;
  const has = (bit: bigint): boolean => (header.incompatible_features & bit) !== 0n;
  const data: Record<string, JsonValue> = {
    compat: header.version === 2 ? "0.10" : "1.1",
    "compression-type": header.compression_type === COMPRESSION_TYPE.zstd ? "zstd" : "zlib",
  };
  if (header.version >= 3) {
    data["lazy-refcounts"] = (header.compatible_features & COMPATIBLE_LAZY_REFCOUNTS) !== 0n;
  }
  if (layout.extensions.bitmaps !== undefined) {
    data["bitmaps"] = readBitmapDirectory(layout.extensions.bitmaps, storage).map((bitmap) => ({
      flags: bitmap.flags,
      name: bitmap.name,
      granularity: bitmap.granularity,
    }));
  }
  data["refcount-bits"] = layout.refcountBits;
  if (isEncryptedQcow2(layout)) {
    data["encrypt"] = describeEncryption(layout, storage);
  }
  if (layout.dataFile !== undefined) {
    data["data-file"] = layout.dataFile.name;
    data["data-file-raw"] = layout.dataFile.raw;
  }
  if (header.version >= 3) {
    data["corrupt"] = has(INCOMPATIBLE.corrupt);
    data["extended-l2"] = layout.extendedL2;
  }
  return {
    clusterSize: layout.clusterSize,
    encrypted: isEncryptedQcow2(layout),
    dirty: has(INCOMPATIBLE.dirty),
    snapshots,
    specific: { type: "qcow2", data },
  };
}
