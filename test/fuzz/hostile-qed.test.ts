// QED header fields at their extremes, and table entries that point nowhere or at themselves.

import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describeHostile, type HostileCase, imageFile } from "../support/hostile-case.ts";
import { qedSample } from "../support/hostile-samples.ts";
import {
  buildQed,
  QED_HEADER_FIELDS,
  type QedHeaderField,
  type QedImage,
  qedHeaderFieldNames,
} from "../support/qed-builder.ts";

const EXTREMES_U32 = [
  0, 1, 2, 3, 4, 15, 16, 17, 32, 63, 64, 65, 511, 512, 2048, 4095, 4097, 8192, 65536,
].map(BigInt);
const HUGE_U32 = [1n << 25n, 1n << 26n, 1n << 27n, (1n << 31n) - 1n, 1n << 31n];
const EXTREMES_U64 = [0n, 1n, 2n, 4n, 8n, 511n, 512n, 513n, 4096n, 1n << 31n, 1n << 32n, 1n << 40n];
const HUGE_U64 = [53n, 56n, 62n, 63n].flatMap((bit) => [
  (1n << bit) - 512n,
  (1n << bit) - 1n,
  1n << bit,
  (1n << bit) + 4096n,
]);

function extremes(field: QedHeaderField, right: bigint, fileSize: number): bigint[] {
  const size = QED_HEADER_FIELDS[field].size;
  const max = (1n << BigInt(size * 8)) - 1n;
  const atEnd = [BigInt(fileSize) - 4096n, BigInt(fileSize), BigInt(fileSize) + 4096n];
  const near = [right - 1n, right + 1n, right + 512n, right + 4096n, right * 2n, right * 4n];
  const fixed =
    size === 4 ? [...EXTREMES_U32, ...HUGE_U32] : [...EXTREMES_U64, ...HUGE_U64, ...atEnd];
  return [...new Set([...fixed, ...near, max - 1n, max])].filter(
    (value) => value >= 0n && value <= max && value !== right,
  );
}

function changed(
  name: string,
  change: (image: QedImage) => unknown,
  more: Partial<HostileCase> = {},
): HostileCase {
  const write: HostileCase["write"] = (directory) => {
    const image = qedSample();
    change(image);
    return imageFile(image.bytes, "image.qed")(directory);
  };
  return { name, format: "qed", write, ...more };
}

describeHostile(
  "header fields of QED",
  qedHeaderFieldNames().flatMap((field) => {
    const right = qedSample();
    return extremes(field, right.header(field), right.bytes.length).map((value) =>
      changed(`${field} = 0x${value.toString(16)}`, (image) => image.setHeader(field, value), {
        // QEMU's own check refuses every table of one cluster; the specification allows it.
        oracle: field === "table_size" && value === 1n ? "none" : "qemu-img",
      }),
    );
  }),
  5,
);

describeHostile("QED features", [
  changed("need check leaves the image readable", (image) => image.setHeader("features", 2), {
    expected: "open",
    command: "always",
  }),
  changed(
    "unknown compatible and autoclear bits are tolerated",
    (image) => image.setHeader("compat_features", -1).setHeader("autoclear_features", -1),
    { expected: "open" },
  ),
  changed("an unknown feature bit is refused", (image) => image.setHeader("features", 8), {
    expected: "refused",
    command: "always",
  }),
  changed("no-probe without a backing file", (image) => image.setHeader("features", 4)),
  changed("a backing file feature with an empty name", (image) => image.setHeader("features", 1)),
  changed("a backing file name past the header area", (image) =>
    image
      .setHeader("features", 1)
      .setHeader("backing_filename_offset", 4000)
      .setHeader("backing_filename_size", 97),
  ),
  changed("a backing file name that ends past 2^32", (image) =>
    image
      .setHeader("features", 1)
      .setHeader("backing_filename_offset", 0xffff_fff0)
      .setHeader("backing_filename_size", 0x20),
  ),
]);

const sample = qedSample();
const END = BigInt(sample.bytes.length);
const ODD_ENTRIES: [label: string, entry: bigint][] = [
  ["2", 2n],
  ["the header", 64n],
  ["512", 512n],
  ["the L1 table", BigInt(sample.region("l1").offset)],
  ["the L2 table", BigInt(sample.region("l2 0").offset)],
  ["the second cluster of the L2 table", BigInt(sample.region("l2 0").offset) + 4096n],
  ["the last cluster", END - 4096n],
  ["the end of the file", END],
  ["one past the last byte", END + 1n],
  ["unaligned", 0x5001n],
  ["unaligned by a sector", 0x5200n],
  ["far past the end", 1n << 45n],
  ["2^53", 1n << 53n],
  ["2^63", 1n << 63n],
  ["all bits", (1n << 64n) - 1n],
  ["the highest cluster", (1n << 64n) - 4096n],
];

describeHostile(
  "QED table entries",
  ODD_ENTRIES.flatMap(([label, entry]) => [
    changed(`L1 entry: ${label}`, (image) => image.setL1(0, entry)),
    changed(`L2 entry of a data cluster: ${label}`, (image) => image.setL2(6, entry)),
    changed(`L2 entry of an unallocated cluster: ${label}`, (image) => image.setL2(9, entry)),
  ]),
);

/** A QED header alone, in a sparse file of `fileSize` bytes. */
function sparse(
  name: string,
  fileSize: number,
  options: Parameters<typeof buildQed>[0],
  more: Partial<HostileCase> = {},
): HostileCase {
  return {
    name,
    format: "qed",
    write: (directory) => {
      const path = join(directory, "image.qed");
      const fd = openSync(path, "w");
      // Built with small clusters, so that the header is all there is; its fields say otherwise.
      writeSync(
        fd,
        buildQed({ clusterSize: 4096, tableClusters: 2, ...options }).bytes.subarray(0, 4096),
      );
      ftruncateSync(fd, fileSize);
      closeSync(fd);
      return path;
    },
    command: "always",
    ...more,
  };
}

const MIB = 1024 * 1024;

// QEMU refuses tables of 1 GiB, since its own limit for the disk overflows; the specification allows them.
describeHostile("giant QED images", [
  sparse(
    "tables of 1 GiB in a sparse file",
    4096 * MIB,
    {
      header: {
        cluster_size: 64 * MIB,
        table_size: 16,
        header_size: 1,
        l1_table_offset: 64 * MIB,
        image_size: MIB,
      },
    },
    { oracle: "none", expected: "open" },
  ),
  sparse(
    "tables of 1 GiB and the largest disk below 2^53",
    4096 * MIB,
    {
      header: {
        cluster_size: 64 * MIB,
        table_size: 16,
        header_size: 1,
        l1_table_offset: 64 * MIB,
        image_size: 2 ** 51,
      },
    },
    { oracle: "none" },
  ),
  sparse(
    "a disk of 2^63 bytes",
    4096 * MIB,
    {
      header: {
        cluster_size: 64 * MIB,
        table_size: 16,
        header_size: 1,
        l1_table_offset: 64 * MIB,
        image_size: 1n << 63n,
      },
    },
    { oracle: "none", expected: "refused" },
  ),
  sparse(
    "a sparse file of 8 TiB",
    8 * MIB * MIB,
    { header: { image_size: MIB } },
    { expected: "open" },
  ),
  sparse(
    "the L1 table at 8 TiB",
    8 * MIB * MIB,
    { header: { image_size: MIB, l1_table_offset: 8 * MIB * MIB - 8192 } },
    { expected: "open" },
  ),
]);
