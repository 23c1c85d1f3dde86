/** The checks of the qcow2 header: each limit, at it and past it. */

import { describe, expect, it } from "vitest";
import { readQcow2Layout } from "../../../../src/formats/qcow2/layout.ts";
import { buildQcow2, type Qcow2Options, qcow2Bytes } from "../../../support/qcow2-builder.ts";
import {
  AUTOCLEAR_RAW_DATA_FILE,
  featureNameTable,
  type Qcow2HeaderFields,
} from "../../../support/qcow2-header-builder.ts";
import { MemoryStorage } from "../../memory-storage.ts";
import { openQcow2 } from "../open-image.ts";

/** Expect that an image with these header fields is refused with `reason`. */
function expectRefusal(
  header: Qcow2HeaderFields,
  reason: RegExp,
  { name = "FormatError", ...options }: Qcow2Options & { name?: string } = {},
): void {
  const bytes = qcow2Bytes({ ...options, header });
  expect(() => openQcow2(bytes)).toThrow(
    expect.objectContaining({ name, path: "disk.qcow2", message: expect.stringMatching(reason) }),
  );
}

function open(header: Qcow2HeaderFields, options: Qcow2Options = {}): ReturnType<typeof openQcow2> {
  return openQcow2(qcow2Bytes({ ...options, header }));
}

describe("qcow2 header", () => {
  it("without the magic number is no qcow2 image", () => {
    expectRefusal({ magic: 0x514649fa }, /is not a qcow2 image/);
    expect(() => openQcow2(new Uint8Array(0))).toThrow(/is not a qcow2 image/);
  });

  it.each([0, 1, 4, 0xffff_ffff])("of version %i is not supported", (version) => {
    expectRefusal({ version }, new RegExp(`version ${version} is not supported`), {
      name: "UnsupportedError",
    });
  });

  it.each([0, 8, 22, 32, 64, 0xffff_ffff])("refuses cluster_bits %i, outside 9..21", (bits) => {
    expectRefusal({ cluster_bits: bits }, /^disk\.qcow2: cluster_bits \d+ is outside 9\.\.21$/);
  });

  it.each([9, 21])("takes cluster_bits %i", (clusterBits) => {
    expect(openQcow2(qcow2Bytes({ clusterBits })).clusterSize).toBe(2 ** clusterBits);
  });

  it.each([
    "backing_file_offset",
    "size",
    "l1_table_offset",
    "refcount_table_offset",
    "snapshots_offset",
  ] as const)("refuses %s above 2^53 - 1, by its name", (field) => {
    const reason = new RegExp(
      `^disk\\.qcow2: ${field} 0x[0-9a-f]+ is above the limit of 2\\^53 - 1$`,
    );
    expectRefusal({ [field]: 2n ** 53n }, reason);
    expectRefusal({ [field]: -1 }, reason);
  });

  it.each([0, 72, 103])("refuses a version 3 header_length of %i, below 104", (length) => {
    expectRefusal({ header_length: length }, /header_length \d+ is less than 104/);
  });

  it("refuses a header_length above the cluster size", () => {
    expectRefusal({ header_length: 520 }, /header_length 520 exceeds the cluster size 512/, {
      clusterBits: 9,
    });
    expectRefusal({ header_length: 0xffff_ffff }, /header_length 4294967295 exceeds/);
  });

  it.each([104, 112, 120, 200])("takes a header_length of %i", (headerLength) => {
    const image = openQcow2(
      qcow2Bytes({ headerLength, backingFile: "base", backingFormat: "raw" }),
    );
    expect(image.backingFile).toEqual({ name: "base", format: "raw" });
  });

  it("takes compression_type for absent in a header of 104 bytes", () => {
    const image = buildQcow2({ headerLength: 104 });
    // The type of the first extension, which is what follows.
    image.bytes[104] = 0x01;
    expect(() => openQcow2(image.bytes)).not.toThrow();
  });

  it("takes feature bits for absent in version 2", () => {
    const image = buildQcow2({ version: 2 });
    image.bytes.fill(0xff, 80, 112);
    image.setU64(72, 0);
    const opened = openQcow2(image.bytes);
    expect(opened.layout.refcountBits).toBe(16);
    expect(opened.layout.extendedL2).toBe(false);
    expect(opened.layout.header).toMatchObject({
      incompatible_features: 0n,
      compatible_features: 0n,
      autoclear_features: 0n,
      compression_type: 0,
    });
  });

  it("refuses a backing_file_offset above the cluster size", () => {
    expectRefusal({ backing_file_offset: 65537 }, /backing_file_offset 0x10001 exceeds/);
  });

  it("refuses a backing_file_size above 1023, or above what is left of the cluster", () => {
    const backing = { backingFile: "b".repeat(1023) };
    expect(open({}, backing).backingFile?.name).toBe("b".repeat(1023));
    expectRefusal({ backing_file_size: 1024 }, /backing_file_size 1024 exceeds 1023/, backing);
    expectRefusal(
      { backing_file_offset: 65536 - 10, backing_file_size: 11 },
      /backing_file_size 11 exceeds 10/,
    );
  });

  it("ignores backing_file_size where backing_file_offset is 0", () => {
    expect(open({ backing_file_size: 0xffff_ffff }).backingFile).toBeUndefined();
  });

  it("ends the backing file's name at a NUL, and knows no backing file of an empty name", () => {
    expect(open({}, { backingFile: "base\0rest" }).backingFile?.name).toBe("base");
    expect(open({}, { backingFile: "\0rest" }).backingFile).toBeUndefined();
    expect(open({}, { backingFile: "" }).backingFile).toBeUndefined();
  });

  it.each([2, 255])("does not know compression type %i", (compression_type) => {
    expectRefusal({ compression_type }, /compression type \d+ is not known/, {
      name: "UnsupportedError",
    });
  });

  it("refuses a compression type that contradicts its feature bit", () => {
    expectRefusal({ compression_type: 1 }, /compression type 1 contradicts .* clear/);
    expectRefusal({ compression_type: 0 }, /compression type 0 contradicts .* set/, {
      compressionType: 1,
    });
  });

  it.each([3, 4, 0xffff_ffff])("does not know encryption method %i", (crypt_method) => {
    expectRefusal({ crypt_method }, /encryption method \d+ is not known/, {
      name: "UnsupportedError",
    });
  });

  it("takes refcount_order up to 6", () => {
    for (let order = 0; order <= 6; order++) {
      expect(openQcow2(qcow2Bytes({ refcountOrder: order })).layout.refcountBits).toBe(2 ** order);
    }
    expectRefusal({ refcount_order: 7 }, /refcount_order 7 exceeds 6/);
    expectRefusal({ refcount_order: 0xffff_ffff }, /refcount_order 4294967295 exceeds 6/);
  });

  it("refuses extended L2 entries with clusters below 16 KiB", () => {
    expectRefusal({}, /cluster_bits 13 is below 14/, { clusterBits: 13, extendedL2: true });
    expect(openQcow2(qcow2Bytes({ clusterBits: 14, extendedL2: true })).layout.l2Entries).toBe(
      1024,
    );
  });

  it("refuses raw external data without an external data file", () => {
    expectRefusal({ autoclear_features: AUTOCLEAR_RAW_DATA_FILE }, /autoclear feature bit 1/);
  });

  it("ignores unknown compatible and autoclear bits", () => {
    const all = 2n ** 64n - 1n;
    expect(() => open({ compatible_features: all })).not.toThrow();
    expect(() => open({ autoclear_features: all & ~3n })).not.toThrow();
  });
});

describe("qcow2 incompatible features", () => {
  it("that are not known are refused by the names of the feature table", () => {
    const names = featureNameTable([
      { kind: 1, bit: 17, name: "compatible namesake" },
      { kind: 0, bit: 17, name: "shiny new thing" },
      { kind: 0, bit: 63, name: "x".repeat(60) },
    ]);
    expectRefusal(
      { incompatible_features: (1n << 17n) | (1n << 40n) | (1n << 63n) },
      /not supported: "shiny new thing" \(bit 17\), bit 40, "x{46}" \(bit 63\)$/,
      { name: "UnsupportedError", extensions: [names] },
    );
  });

  it("that are not known are refused without a feature table", () => {
    expectRefusal({ incompatible_features: 1n << 5n }, /not supported: bit 5$/, {
      name: "UnsupportedError",
    });
  });

  it("cannot put control characters into the message", () => {
    const names = featureNameTable([{ kind: 0, bit: 9, name: "\x1b[31mred\n" }]);
    expectRefusal({ incompatible_features: 1n << 9n }, /"\\x1b\[31mred\\x0a" \(bit 9\)$/, {
      name: "UnsupportedError",
      extensions: [names],
    });
  });

  it("dirty and corrupt do not keep an image from being read", () => {
    expect(() => openQcow2(qcow2Bytes({ incompatible: 3n }))).not.toThrow();
  });
});

describe("tables that the qcow2 header names", () => {
  it.each(["l1_table_offset", "refcount_table_offset", "snapshots_offset"] as const)(
    "must start on a cluster boundary: %s",
    (field) => {
      expectRefusal(
        { [field]: 0x1_0200 },
        new RegExp(`${field} 0x10200 is not a multiple of .* 0x10000`),
      );
    },
  );

  it("must leave their end below 2^53", () => {
    const last = 2 ** 53 - 65536;
    expectRefusal({ l1_table_offset: last, l1_size: 8193 }, /l1_table_offset .* above the limit/);
    expectRefusal({ refcount_table_offset: last }, /refcount_table_offset .* above the limit/);
  });

  it("have limits: a refcount table of 8 MiB", () => {
    expectRefusal({ refcount_table_clusters: 0 }, /refcount_table_clusters is 0/);
    expect(() => open({ refcount_table_clusters: 128 })).not.toThrow();
    expectRefusal({ refcount_table_clusters: 129 }, /has 8454144 bytes, the limit is 8388608/);
    expectRefusal({ refcount_table_clusters: 0xffff_ffff }, /the limit is 8388608/);
  });

  it("have limits: an L1 table of 32 MiB", () => {
    const l1_size = (32 * 1024 * 1024) / 8;
    expect(() => open({ l1_size })).not.toThrow();
    expectRefusal({ l1_size: l1_size + 1 }, /has 33554440 bytes, the limit is 33554432/);
    expectRefusal({ l1_size: 0xffff_ffff }, /the limit is 33554432/);
  });

  it("have limits: 65536 snapshots", () => {
    expectRefusal({ nb_snapshots: 65537 }, /nb_snapshots 65537 exceeds 65536/);
  });

  it("need an L1 entry for every part of the disk", () => {
    // One L2 table of 64 KiB clusters maps 512 MiB.
    const options = { l1Entries: 2 };
    expect(open({ size: 2 ** 30 }, options).virtualSize).toBe(2 ** 30);
    expectRefusal({ size: 2 ** 30 + 512 }, /l1_size 2 is less than the 3 entries/, options);
    expectRefusal({ size: 2n ** 53n - 1n }, /l1_size 2 is less than/, options);
  });

  it("need no L1 entry for a disk of no size", () => {
    expect(open({ size: 0, l1_size: 0 }).virtualSize).toBe(0);
  });

  it("do without an L1 table past the end of the file only if nothing needs it", () => {
    expectRefusal({ l1_table_offset: 2 ** 40 }, /L1 table offset 0x10000000000 is past the end/);
    expect(() => open({ l1_table_offset: 2 ** 40, size: 0 })).not.toThrow();
  });
});

describe("the virtual size", () => {
  it.each([
    [0, 0],
    [511, 0],
    [512, 512],
    [1000, 512],
    [1024, 1024],
    [1_048_577, 1_048_576],
  ])("of %i bytes is %i: only whole sectors count", (size, virtualSize) => {
    expect(open({ size }).virtualSize).toBe(virtualSize);
  });
});

describe("opening a qcow2 image", () => {
  it("reads no more of the file than its header, its first cluster and its L1 table", () => {
    const storage = new MemoryStorage("disk.qcow2", qcow2Bytes());
    readQcow2Layout(storage, { tableCacheMax: 4096, keepsL1: true });
    const read = storage.reads.reduce((sum, { length }) => sum + length, 0);
    expect(read).toBeLessThanOrEqual(4096 + 65536 + 8);
  });
});
