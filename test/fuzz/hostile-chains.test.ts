// Backing chains that loop, are too deep, or break somewhere below the top.

import { linkSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describeHostile, type HostileCase } from "../support/hostile-case.ts";
import { qcow2Sample, qedSample } from "../support/hostile-samples.ts";
import { buildQcow2, type Qcow2Options } from "../support/qcow2-builder.ts";
import { buildQed } from "../support/qed-builder.ts";
import { Random } from "../support/random.ts";

const CLUSTER = 4096;
const SIZE = 16 * CLUSTER;
const bytes = new Random("chains", 1).bytes(SIZE);

/** An overlay that has cluster 15 of its own and refers to `backingFile`. */
function overlay(
  directory: string,
  name: string,
  backingFile: string,
  more: Qcow2Options = {},
): string {
  const data = bytes.subarray(0, CLUSTER);
  const image = buildQcow2({
    clusterBits: 12,
    virtualSize: SIZE,
    backingFile,
    backingFormat: "qcow2",
    clusters: { 15: { kind: "data", bytes: data } },
    ...more,
  });
  return image.write(join(directory, name));
}

function loop(
  name: string,
  write: HostileCase["write"],
  more: Partial<HostileCase> = {},
): HostileCase {
  return {
    name,
    format: "qcow2",
    write,
    oracle: "none",
    expected: "refused",
    infoStatus: 0,
    ...more,
  };
}

describeHostile("chains that loop", [
  loop("an image that is its own backing file", (directory) =>
    overlay(directory, "a.qcow2", "a.qcow2"),
  ),
  loop("an image that is its own backing file, as raw", (directory) =>
    overlay(directory, "a.qcow2", "a.qcow2", { backingFormat: "raw" }),
  ),
  loop("an image that is its own backing file by another path", (directory) =>
    overlay(directory, "a.qcow2", "./././a.qcow2"),
  ),
  loop("two images that refer to each other", (directory) => {
    overlay(directory, "b.qcow2", "a.qcow2");
    return overlay(directory, "a.qcow2", "b.qcow2");
  }),
  loop("three images in a circle below the top", (directory) => {
    overlay(directory, "c.qcow2", "a.qcow2");
    overlay(directory, "b.qcow2", "c.qcow2");
    overlay(directory, "a.qcow2", "b.qcow2");
    return overlay(directory, "top.qcow2", "a.qcow2");
  }),
  loop("a loop through a symbolic link", (directory) => {
    symlinkSync("a.qcow2", join(directory, "link.qcow2"));
    return overlay(directory, "a.qcow2", "link.qcow2");
  }),
  loop("a loop through a hard link", (directory) => {
    const path = overlay(directory, "a.qcow2", "link.qcow2");
    linkSync(path, join(directory, "link.qcow2"));
    return path;
  }),
  loop("a loop through a linked directory", (directory) => {
    symlinkSync(".", join(directory, "here"));
    return overlay(directory, "a.qcow2", "here/here/here/a.qcow2");
  }),
  loop("a symbolic link to itself", (directory) => {
    symlinkSync("link.qcow2", join(directory, "link.qcow2"));
    return overlay(directory, "a.qcow2", "link.qcow2");
  }),
  loop(
    "a QED image that is its own backing file",
    (directory) => qedSample({ backingFile: "a.qed" }).write(join(directory, "a.qed")),
    { format: "qed" },
  ),
  loop("a qcow2 and a QED image that refer to each other", (directory) => {
    qedSample({ backingFile: "a.qcow2" }).write(join(directory, "b.qed"));
    return overlay(directory, "a.qcow2", "b.qed", { backingFormat: "qed" });
  }),
  loop("an external data file that is the image itself", (directory) =>
    buildQcow2({ clusterBits: 12, virtualSize: SIZE, dataFile: "a.qcow2" }).write(
      join(directory, "a.qcow2"),
    ),
  ),
]);

/** A chain of `depth` images; each has one cluster of its own. */
function chainOfDepth(directory: string, depth: number): string {
  let path = "";
  for (let level = 0; level < depth; level++) {
    const base =
      level === 0 ? {} : { backingFile: `level-${level - 1}.qcow2`, backingFormat: "qcow2" };
    const cluster = level % 16;
    const data = bytes.subarray(cluster * CLUSTER, (cluster + 1) * CLUSTER);
    const clusters = { [cluster]: { kind: "data", bytes: data } as const };
    path = buildQcow2({ clusterBits: 12, virtualSize: SIZE, ...base, clusters }).write(
      join(directory, `level-${level}.qcow2`),
    );
  }
  return path;
}

describeHostile("deep chains", [
  {
    name: "64 images",
    format: "qcow2",
    write: (directory) => chainOfDepth(directory, 64),
    expected: "open",
    command: "always",
  },
  {
    name: "65 images",
    format: "qcow2",
    write: (directory) => chainOfDepth(directory, 65),
    oracle: "none",
    expected: "refused",
    reason: /64/,
    infoStatus: 0,
    command: "always",
  },
]);

/** A good overlay over whatever `below` writes as "base". */
function over(
  name: string,
  format: string,
  below: (path: string, directory: string) => unknown,
  more: Partial<HostileCase> = {},
): HostileCase {
  const write: HostileCase["write"] = (directory) => {
    below(join(directory, "base"), directory);
    return overlay(directory, "top.qcow2", "base", { backingFormat: format });
  };
  return { name: `${format}: ${name}`, format: "qcow2", write, infoStatus: 0, ...more };
}

describeHostile("backing files that are not what they should be", [
  over("missing", "qcow2", () => {}, { expected: "refused" }),
  over("a directory", "raw", (path) => mkdirSync(path), { oracle: "none", expected: "refused" }),
  over("empty", "raw", (path) => writeFileSync(path, "")),
  over("empty", "qcow2", (path) => writeFileSync(path, "")),
  over("one byte", "raw", (path) => writeFileSync(path, "x")),
  over("one byte more than a sector", "raw", (path) => writeFileSync(path, bytes.subarray(0, 513))),
  over("ends in the middle of a cluster", "raw", (path) =>
    writeFileSync(path, bytes.subarray(0, 3 * CLUSTER + 1536)),
  ),
  over("longer than the overlay", "raw", (path) =>
    writeFileSync(path, Buffer.concat([bytes, bytes])),
  ),
  over("holds qcow2 magic, and stays raw", "raw", (path) => qcow2Sample().write(path), {
    expected: "open",
  }),
  over(
    "holds qcow2 that is itself hostile, and stays raw",
    "raw",
    (path) => buildQcow2({ backingFile: "json:{}" }).write(path),
    { expected: "open" },
  ),
  over("raw bytes", "qcow2", (path) => writeFileSync(path, bytes), { expected: "refused" }),
  over("QED", "qcow2", (path) => qedSample().write(path), { expected: "refused" }),
  over("shorter", "qcow2", (path) =>
    buildQcow2({
      clusterBits: 9,
      virtualSize: 3 * 512,
      clusters: { 2: { kind: "data", bytes: bytes.subarray(0, 512) } },
    }).write(path),
  ),
  over("of size 0", "qcow2", (path) => buildQcow2({ clusterBits: 9, virtualSize: 0 }).write(path)),
  over("good", "qcow2", (path) => qcow2Sample().write(path), { expected: "open" }),
  over("good", "qed", (path) => qedSample().write(path), { expected: "open" }),
  over("a format nobody knows", "vmdk-9", (path) => writeFileSync(path, bytes), {
    expected: "refused",
  }),
  over("another format of QEMU", "vmdk", (path) => writeFileSync(path, bytes), {
    oracle: "none",
    expected: "refused",
  }),
  over("a protocol as the format", "nbd", (path) => writeFileSync(path, bytes), {
    oracle: "none",
    expected: "refused",
  }),
  over("a format with control characters", "q\u001b[2J\nx", (path) => writeFileSync(path, bytes), {
    oracle: "none",
    expected: "refused",
  }),
  over("with a damaged L2 entry", "qcow2", (path) => qcow2Sample().setL2(6, 0x1200).write(path)),
  over("with a damaged L1 entry", "qcow2", (path) => qcow2Sample().setL1(0, 0x1200).write(path)),
  over(
    "with a damaged header",
    "qcow2",
    (path) => qcow2Sample().setHeader("cluster_bits", 3).write(path),
    { expected: "refused" },
  ),
  over(
    "marked corrupt",
    "qcow2",
    (path) => qcow2Sample("version 3", { incompatible: 2n }).write(path),
    { expected: "open" },
  ),
  over("encrypted", "qcow2", (path) => qcow2Sample().setHeader("crypt_method", 1).write(path), {
    oracle: "none",
    expected: "refused",
  }),
  {
    name: "sub-clusters over a backing file that ends between two of them",
    format: "qcow2",
    write: (directory) => {
      writeFileSync(join(directory, "base"), bytes.subarray(0, 16384 + 512 * 3));
      const clusters = { 1: { kind: "subclusters", bytes, allocated: 0xf0, zero: 0xf00 } } as const;
      return buildQcow2({
        clusterBits: 14,
        extendedL2: true,
        virtualSize: SIZE,
        backingFile: "base",
        backingFormat: "raw",
        clusters,
      }).write(join(directory, "top.qcow2"));
    },
    expected: "open",
  },
  {
    name: "QED over a raw file that is shorter",
    format: "qed",
    write: (directory) => {
      writeFileSync(join(directory, "base"), bytes.subarray(0, 5000));
      return buildQed({
        clusterSize: 4096,
        tableClusters: 2,
        virtualSize: SIZE,
        backingFile: "base",
        backingFormat: "raw",
      }).write(join(directory, "top.qed"));
    },
    expected: "open",
  },
]);
