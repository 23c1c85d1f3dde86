/** Which options of new images go together. */

import { describe, expect, it } from "vitest";
import {
  checkCreateOptions,
  type Qcow2CreateOptions,
} from "../../../../src/formats/qcow2/create-check.ts";

const PLAIN: Qcow2CreateOptions = {
  version: 3,
  virtualSize: 1024 ** 2,
  clusterSize: 65536,
  refcountBits: 16,
  extendedL2: false,
  lazyRefcounts: false,
  compressionType: "zlib",
  preallocation: "off",
  backingFile: undefined,
  dataFile: undefined,
};
const OVERLAY = { backingFile: { name: "base.raw", format: "raw" } };

const check = (options: Partial<Qcow2CreateOptions>): void =>
  checkCreateOptions({ ...PLAIN, ...options }, "new.qcow2");

describe("checkCreateOptions", () => {
  it.each<Partial<Qcow2CreateOptions>>([
    {},
    { version: 2 },
    { clusterSize: 512, refcountBits: 1 },
    { clusterSize: 2 ** 21, refcountBits: 64 },
    { clusterSize: 16384, extendedL2: true },
    { version: 2, ...OVERLAY, clusterSize: 512 },
    { ...OVERLAY, extendedL2: true, preallocation: "full" },
    { ...OVERLAY, dataFile: { name: "data.raw", raw: false } },
    { dataFile: { name: "data.raw", raw: true }, preallocation: "metadata" },
  ])("allows %o", (options) => {
    expect(() => check(options)).not.toThrow();
  });

  it.each<[Partial<Qcow2CreateOptions>, RegExp]>([
    [
      { clusterSize: 256 },
      /^new\.qcow2: cluster_size 256 is not a power of two in 512\.\.2097152$/,
    ],
    [{ clusterSize: 2 ** 22 }, /cluster_size 4194304 is not/],
    [{ clusterSize: 65535 }, /cluster_size 65535 is not/],
    [{ clusterSize: 0 }, /cluster_size 0 is not/],
    [{ refcountBits: 0 }, /refcount_bits 0 is not a power of two in 1\.\.64/],
    [{ refcountBits: 12 }, /refcount_bits 12 is not/],
    [{ refcountBits: 128 }, /refcount_bits 128 is not/],
    [{ clusterSize: 8192, extendedL2: true }, /needs a cluster_size of 16384 at least, not 8192/],
    [{ version: 2, refcountBits: 8 }, /refcount_bits other than 16 needs compat 1\.1/],
    [{ version: 2, extendedL2: true }, /extended_l2 needs compat 1\.1/],
    [{ version: 2, lazyRefcounts: true }, /lazy_refcounts needs compat 1\.1/],
    [{ version: 2, compressionType: "zstd" }, /compression_type zstd needs compat 1\.1/],
    [{ version: 2, dataFile: { name: "d", raw: false } }, /data_file needs compat 1\.1/],
    [{ ...OVERLAY, dataFile: { name: "d", raw: true } }, /data_file_raw cannot be on/],
    [
      { ...OVERLAY, preallocation: "falloc" },
      /preallocation with a backing file needs extended_l2/,
    ],
  ])("refuses %o", (options, message) => {
    expect(() => check(options)).toThrow(message);
  });

  it("allows names of 1023 bytes, and no longer ones", () => {
    const format = "raw";
    expect(() => check({ backingFile: { name: "b".repeat(1023), format } })).not.toThrow();
    expect(() => check({ backingFile: { name: "ä".repeat(512), format } })).toThrow(
      /^new\.qcow2: the backing file's name has 1024 bytes, the limit is 1023$/,
    );
    expect(() => check({ dataFile: { name: "d".repeat(1023), raw: false } })).not.toThrow();
    expect(() => check({ dataFile: { name: "d".repeat(1024), raw: false } })).toThrow(
      /data file's name has 1024 bytes/,
    );
  });
});
