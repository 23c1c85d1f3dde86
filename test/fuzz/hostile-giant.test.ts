// Images that are small on disk and giant in what they claim: sizes, tables, sparse files.

import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describeHostile, type HostileCase } from "../support/hostile-case.ts";
import { qcow2Sample } from "../support/hostile-samples.ts";
import { buildQcow2, type Qcow2Image, type Qcow2Options } from "../support/qcow2-builder.ts";
import { bitmapsExtension } from "../support/qcow2-header-builder.ts";
import { Random } from "../support/random.ts";

const GIB = 2 ** 30;
const TIB = 2 ** 40;

/** Writes an image, extends it to `fileSize` (sparse), and puts `parts` at their offsets. */
function sparse(
  name: string,
  make: () => {
    image: Qcow2Image;
    fileSize: number;
    parts?: readonly (readonly [offset: number, bytes: Buffer])[];
  },
  more: Partial<HostileCase> = {},
): HostileCase {
  const write: HostileCase["write"] = (directory) => {
    const path = join(directory, "image.qcow2");
    const { image, fileSize, parts = [] } = make();
    const fd = openSync(path, "w");
    writeSync(fd, image.bytes);
    ftruncateSync(fd, fileSize);
    for (const [offset, bytes] of parts) {
      writeSync(fd, bytes, 0, bytes.length, offset);
    }
    closeSync(fd);
    return path;
  };
  return { name, format: "qcow2", write, command: "always", ...more };
}

/** A header that claims `virtualSize`, with an L1 table to match in a sparse area. */
function claims(
  virtualSize: bigint,
  options: Qcow2Options,
  more: Partial<HostileCase> = {},
): HostileCase {
  const clusterBits = options.clusterBits ?? 16;
  const covered = 1n << BigInt(2 * clusterBits - (options.extendedL2 === true ? 4 : 3));
  const l1Entries = (virtualSize + covered - 1n) / covered;
  return sparse(
    `a disk of ${virtualSize} bytes with clusters of 2^${clusterBits}`,
    () => {
      const image = buildQcow2({ ...options, virtualSize: 0, l1Entries: 1 });
      image.setHeader("size", virtualSize).setHeader("l1_size", l1Entries);
      image.setHeader("l1_table_offset", image.bytes.length);
      return { image, fileSize: image.bytes.length + Math.min(Number(l1Entries) * 8, GIB) };
    },
    more,
  );
}

/** QEMU looks at the refcount of every cluster of the file: large ones keep it short. */
function largeClusters(): Qcow2Image {
  return buildQcow2({ virtualSize: 4 * 65536, clusters: { 0: { kind: "data", bytes: tail } } });
}

const tail = new Random("giant", 1).bytes(65536);

describeHostile("giant sparse files", [
  sparse(
    "8 TiB of nothing behind a good image",
    () => ({ image: largeClusters(), fileSize: 8 * TIB }),
    { expected: "open" },
  ),
  sparse(
    "data in the last cluster of 8 TiB",
    () => {
      const image = buildQcow2({
        virtualSize: 4 * 65536,
        clusters: { 0: { kind: "data", bytes: tail } },
      });
      image.setL2(2, 8 * TIB - 65536);
      return { image, fileSize: 8 * TIB, parts: [[8 * TIB - 65536, tail]] };
    },
    { expected: "open" },
  ),
  sparse(
    "an L2 table in the last cluster of 8 TiB",
    () => {
      const image = buildQcow2({
        virtualSize: 4 * 65536,
        clusters: { 0: { kind: "data", bytes: tail } },
      });
      const l2 = image.region("l2 0");
      const table = Buffer.from(image.bytes.subarray(l2.offset, l2.offset + 65536));
      image.setL1(0, 8 * TIB - 65536);
      return { image, fileSize: 8 * TIB, parts: [[8 * TIB - 65536, table]] };
    },
    { expected: "open" },
  ),
  sparse(
    "an L1 table at 8 TiB",
    () => {
      const image = largeClusters();
      const l1 = image.region("l1");
      const table = Buffer.from(image.bytes.subarray(l1.offset, l1.offset + 8));
      image.setHeader("l1_table_offset", 8 * TIB);
      return { image, fileSize: 8 * TIB + 65536, parts: [[8 * TIB, table]] };
    },
    { expected: "open" },
  ),
  // Looking for preallocation reads refcounts; every table entry leads to the same block. QEMU takes minutes.
  sparse(
    "1-bit refcounts of 8 TiB in 512-byte clusters, one block for all",
    () => {
      const image = buildQcow2({
        clusterBits: 9,
        refcountOrder: 0,
        virtualSize: 65536,
        clusters: { 0: { kind: "data", bytes: tail.subarray(0, 512) } },
      });
      const end = image.bytes.length;
      const entries = 2 ** 20;
      const table = Buffer.alloc(entries * 8);
      for (let entry = 0; entry < entries; entry++) {
        table.writeBigUInt64BE(BigInt(end + table.length), entry * 8);
      }
      image
        .setHeader("refcount_table_offset", end)
        .setHeader("refcount_table_clusters", table.length / 512);
      return { image, fileSize: 8 * TIB, parts: [[end, table]] };
    },
    { oracle: "none", expected: "open" },
  ),
  sparse(
    "refcount tables of 8 MiB and of 8 MiB and one cluster",
    () => {
      const image = qcow2Sample().setHeader("refcount_table_clusters", 2049);
      return { image, fileSize: 64 * 2 ** 20 };
    },
    { expected: "refused" },
  ),
]);

const NOT_FOR_QEMU: Partial<HostileCase> = { oracle: "none" };

describeHostile("giant claims", [
  claims(BigInt(64 * TIB), {}, { expected: "open" }),
  claims(BigInt(64 * TIB), { extendedL2: true }, { expected: "open" }),
  claims(1n << 37n, { clusterBits: 9 }, { expected: "open" }),
  claims((1n << 37n) + 512n, { clusterBits: 9 }, { expected: "refused" }),
  claims((1n << 53n) - 512n, { clusterBits: 21 }, { expected: "open" }),
  claims(1n << 53n, { clusterBits: 21 }, { ...NOT_FOR_QEMU, expected: "refused" }),
  claims(1n << 60n, { clusterBits: 21 }, { ...NOT_FOR_QEMU, expected: "refused" }),
  claims(1n << 61n, { clusterBits: 21 }, { ...NOT_FOR_QEMU, expected: "refused" }),
  claims(1n << 62n, { clusterBits: 21 }, { ...NOT_FOR_QEMU, expected: "refused" }),
  claims((1n << 63n) - 512n, { clusterBits: 21 }, { ...NOT_FOR_QEMU, expected: "refused" }),
  claims(1n << 63n, { clusterBits: 21 }, { ...NOT_FOR_QEMU, expected: "refused" }),
  claims(-1n & ((1n << 64n) - 512n), { clusterBits: 21 }, { ...NOT_FOR_QEMU, expected: "refused" }),
  claims(-1n & ((1n << 64n) - 1n), { clusterBits: 9 }, { ...NOT_FOR_QEMU, expected: "refused" }),
  sparse(
    "an L1 table of 32 MiB, every entry to one empty L2 table",
    () => {
      const image = buildQcow2({
        clusterBits: 9,
        virtualSize: 512 * 64,
        clusters: { 0: { kind: "zero" } },
      });
      const entries = 2 ** 22;
      const l2 = BigInt(image.region("l2 0").offset);
      const table = Buffer.alloc(entries * 8);
      for (let entry = 0; entry < entries; entry++) {
        table.writeBigUInt64BE(l2, entry * 8);
      }
      image.setHeader("l1_table_offset", image.bytes.length).setHeader("l1_size", entries);
      image.setHeader("size", entries * 64 * 512);
      return {
        image,
        fileSize: image.bytes.length + table.length,
        parts: [[image.bytes.length, table]],
      };
    },
    { expected: "open", command: "never" },
  ),
  sparse("a bitmaps directory of 64 MiB", () => {
    const image = qcow2Sample("version 3", { header: { autoclear_features: 1 } });
    return { image, fileSize: 256 * 2 ** 20 };
  }),
]);

/** An image whose bitmap directory has `count` entries with names of `nameSize` bytes that are not UTF-8. */
function bitmaps(name: string, count: number, nameSize: number): HostileCase {
  const make = () => {
    const entry = Buffer.alloc(Math.ceil((24 + nameSize) / 8) * 8, 0xff);
    entry.fill(0, 0, 24);
    entry[16] = 1;
    entry[17] = 16;
    entry.writeUInt16BE(nameSize, 18);
    const directory = Buffer.concat(Array.from({ length: count }, () => entry));
    const place = { count, directorySize: directory.length, directoryOffset: 0 };
    const options = { clusterBits: 12, virtualSize: 65536, header: { autoclear_features: 1 } };
    const { length } = buildQcow2({ ...options, extensions: [bitmapsExtension(place)] }).bytes;
    const extensions = [bitmapsExtension({ ...place, directoryOffset: length })];
    const image = buildQcow2({ ...options, extensions });
    return { image, fileSize: length + directory.length, parts: [[length, directory] as const] };
  };
  return sparse(name, make, { oracle: "none" });
}

describeHostile("bitmap directories of 64 MiB", [
  bitmaps("65000 names of 1000 bytes", 65000, 1000),
  bitmaps("1000 names of 65535 bytes", 1000, 65535),
]);

describeHostile("chains of giant claims", [
  {
    name: "64 images with L1 tables of 32 MiB each",
    format: "qcow2",
    write: (directory) => {
      let path = "";
      for (let level = 0; level < 64; level++) {
        const base =
          level === 0 ? {} : { backingFile: `${level - 1}.qcow2`, backingFormat: "qcow2" };
        const image = buildQcow2({ clusterBits: 9, virtualSize: 0, l1Entries: 1, ...base });
        const end = image.bytes.length;
        image
          .setHeader("size", 2 ** 37)
          .setHeader("l1_size", 2 ** 22)
          .setHeader("l1_table_offset", end);
        path = join(directory, `${level}.qcow2`);
        const fd = openSync(path, "w");
        writeSync(fd, image.bytes);
        ftruncateSync(fd, end + 2 ** 25);
        closeSync(fd);
      }
      return path;
    },
    oracle: "none",
    command: "never",
  },
]);
