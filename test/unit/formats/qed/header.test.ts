/** The checks of the QED header: each limit, at it and past it. */

import { describe, expect, it } from "vitest";
import { buildQed, type QedOptions, qedBytes } from "../../../support/qed-builder.ts";
import { openQed } from "../open-image.ts";

const MIB = 1024 * 1024;

function expectRefusal(options: QedOptions, reason: RegExp, name = "FormatError"): void {
  const bytes = qedBytes(options);
  expect(() => openQed(bytes)).toThrow(
    expect.objectContaining({ name, path: "disk.qed", message: expect.stringMatching(reason) }),
  );
}

/** Clusters of 4 KiB and tables of one cluster: 512 entries. */
const SMALL: QedOptions = { clusterSize: 4096, tableClusters: 1 };

describe("QED header", () => {
  it("without the magic number is no QED image", () => {
    expectRefusal({ header: { magic: 0x00444552 } }, /is not a QED image/);
  });

  it("must be whole", () => {
    const bytes = qedBytes();
    expect(() => openQed(bytes.subarray(0, 63))).toThrow(/has 63 bytes, less than a QED header/);
    expect(() => openQed(new Uint8Array(0))).toThrow(/has 0 bytes/);
  });

  it.each([0, 1, 2048, 4095, 4097, 12288, 128 * MIB, 0xffff_ffff])(
    "refuses cluster_size %i, no power of two in 4 KiB..64 MiB",
    (cluster_size) => {
      expectRefusal({ header: { cluster_size } }, /cluster_size \d+ is not a power of two in/);
    },
  );

  it.each([0, 3, 5, 32, 0x8000_0000])(
    "refuses table_size %i, no power of two in 1..16",
    (table_size) => {
      expectRefusal({ header: { table_size } }, /table_size \d+ is not a power of two in 1\.\.16/);
    },
  );

  it.each([
    { clusterSize: 4096, tableClusters: 1 },
    { clusterSize: 4096, tableClusters: 16 },
    { clusterSize: 65536, tableClusters: 4 },
    { clusterSize: 2 * MIB, tableClusters: 2 },
  ])("takes clusters of $clusterSize bytes and tables of $tableClusters", (options) => {
    const image = openQed(qedBytes(options));
    expect(image.clusterSize).toBe(options.clusterSize);
    expect(image.layout.tableEntries).toBe((options.clusterSize * options.tableClusters) / 8);
  });

  it("refuses features that are not known, by their bits", () => {
    expectRefusal({ features: 8 }, /features 0x8 are not known/, "UnsupportedError");
    expectRefusal(
      { features: 1n << 63n },
      /features 0x8000000000000000 are not known/,
      "UnsupportedError",
    );
  });

  it("ignores unknown compatible and autoclear bits", () => {
    const header = { compat_features: -1, autoclear_features: -1 };
    expect(() => openQed(qedBytes({ header }))).not.toThrow();
  });

  it.each(["l1_table_offset", "image_size"] as const)("refuses %s above 2^53 - 1", (field) => {
    expectRefusal(
      { header: { [field]: 2n ** 53n } },
      new RegExp(`${field} 0x20000000000000 is above`),
    );
    expectRefusal({ header: { [field]: -1 } }, new RegExp(`${field} 0xffffffffffffffff is above`));
  });

  it("needs an image_size of whole sectors that the tables can map", () => {
    expectRefusal({ header: { image_size: 513 } }, /image_size 513 is not a multiple of 512/);
    const most = 512 * 512 * 4096;
    expect(openQed(qedBytes({ ...SMALL, virtualSize: most })).virtualSize).toBe(most);
    expectRefusal({ ...SMALL, virtualSize: most + 512 }, /exceeds what the tables map, 1073741824/);
    expect(openQed(qedBytes({ virtualSize: 0 })).virtualSize).toBe(0);
  });

  it("needs a header area below 4 GiB, and the L1 table after it", () => {
    expectRefusal({ header: { header_size: 65536 } }, /header_size 65536 clusters exceed 4 GiB/);
    expectRefusal({ header: { header_size: 0xffff_ffff } }, /exceed 4 GiB/);
    expectRefusal(
      { header: { header_size: 2 } },
      /L1 table 0x10000\.\.0x50000 is outside 0x20000\.\./,
    );
    expect(() => openQed(qedBytes({ headerClusters: 3 }))).not.toThrow();
  });

  it("needs an L1 table on a cluster boundary, whole within the file", () => {
    expectRefusal(
      { header: { l1_table_offset: 0x10200 } },
      /l1_table_offset 0x10200 is not a multiple/,
    );
    expectRefusal({ header: { l1_table_offset: 0x20000 } }, /is outside 0x10000\.\.0x50000/);
    expectRefusal({ header: { l1_table_offset: 0 } }, /is outside/);
    const bytes = qedBytes();
    // A part of a cluster at the end of the file does not count, but a part of a sector does.
    expect(() => openQed(bytes.subarray(0, bytes.length - 511))).not.toThrow();
    expect(() => openQed(bytes.subarray(0, bytes.length - 512))).toThrow(
      /is outside 0x10000\.\.0x40000/,
    );
  });
});

describe("the backing file of a QED image", () => {
  it("has a format only if that is raw", () => {
    expect(openQed(qedBytes({ backingFile: "base" })).backingFile).toEqual({
      name: "base",
      format: undefined,
    });
    expect(openQed(qedBytes({ backingFile: "base", backingFormat: "raw" })).backingFile).toEqual({
      name: "base",
      format: "raw",
    });
  });

  it("is none without the feature bit", () => {
    const header = { backing_filename_offset: 0xffff_ffff, backing_filename_size: 0xffff_ffff };
    expect(openQed(qedBytes({ header })).backingFile).toBeUndefined();
  });

  it("ends at a NUL, and is none with an empty name", () => {
    expect(openQed(qedBytes({ backingFile: "base\0x" })).backingFile?.name).toBe("base");
    expect(openQed(qedBytes({ backingFile: "" })).backingFile).toBeUndefined();
  });

  it("lies within the header area", () => {
    const image = buildQed({ ...SMALL, backingFile: "base" });
    image.setHeader("backing_filename_offset", 4096 - 4);
    expect(() => openQed(image.bytes)).not.toThrow();
    image.setHeader("backing_filename_offset", 4096 - 3);
    expect(() => openQed(image.bytes)).toThrow(
      /backing file name 0xffd\.\.0x1001 is outside the header/,
    );
    image.setHeader("backing_filename_offset", -1);
    expect(() => openQed(image.bytes)).toThrow(/is outside the header/);
  });

  it("has a name of at most 4095 bytes", () => {
    expect(openQed(qedBytes({ backingFile: "b".repeat(4095) })).backingFile?.name).toHaveLength(
      4095,
    );
    expectRefusal({ backingFile: "b".repeat(4096) }, /backing_filename_size 4096 exceeds 4095/);
  });
});
