// Snapshot tables with impossible counts, sizes, L1 tables and names.

import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describeHostile, type HostileCase, imageFile } from "../support/hostile-case.ts";
import { type Qcow2SampleName, qcow2Sample } from "../support/hostile-samples.ts";
import { buildQcow2, type Qcow2Image } from "../support/qcow2-builder.ts";
import { writeBe } from "../support/qcow2-header-builder.ts";
import {
  encodeSnapshot,
  SNAPSHOT_FIELDS,
  type SnapshotField,
} from "../support/qcow2-snapshot-builder.ts";

const OWN = { index: 0, id: "1" } as const;

function changed(
  name: string,
  change: (image: Qcow2Image) => unknown,
  more: Partial<HostileCase> = {},
  sample: Qcow2SampleName = "version 3",
): HostileCase {
  const write: HostileCase["write"] = (directory) => {
    const image = qcow2Sample(sample);
    change(image);
    return imageFile(image.bytes)(directory);
  };
  return { name: `${sample}: ${name}`, format: "qcow2", write, ...more };
}

function extremes(size: number): bigint[] {
  const max = (1n << BigInt(size * 8)) - 1n;
  const fixed = [
    0,
    1,
    7,
    8,
    15,
    16,
    24,
    127,
    128,
    255,
    256,
    1023,
    1024,
    1025,
    4096,
    65535,
    2 ** 22,
    2 ** 22 + 1,
  ].map(BigInt);
  const high = [31n, 32n, 40n, 53n, 56n, 63n].flatMap((bit) => [
    (1n << bit) - 1n,
    1n << bit,
    (1n << bit) + 4096n,
  ]);
  return [...new Set([...fixed, ...high, max - 1n, max])].filter((value) => value <= max);
}

function fieldNames(): SnapshotField[] {
  return Object.keys(SNAPSHOT_FIELDS).filter(
    (name): name is SnapshotField => name in SNAPSHOT_FIELDS,
  );
}

describeHostile(
  "snapshot table fields, the disk itself",
  fieldNames().flatMap((field) =>
    extremes(SNAPSHOT_FIELDS[field].size).map((value) =>
      changed(`${field} = 0x${value.toString(16)}`, (image) => image.setSnapshot(0, field, value)),
    ),
  ),
  3,
);

// The other fields do not matter to reading a snapshot.
describeHostile(
  "snapshot table fields, read through the snapshot",
  (["l1_table_offset", "l1_size"] as const).flatMap((field) =>
    extremes(SNAPSHOT_FIELDS[field].size).map((value) =>
      changed(`${field} = 0x${value.toString(16)}`, (image) => image.setSnapshot(0, field, value), {
        snapshot: OWN,
      }),
    ),
  ),
);

describeHostile("intact snapshots", [
  changed("with its own clusters", () => {}, { snapshot: OWN, expected: "open" }),
  changed("that shares all clusters", () => {}, {
    snapshot: { index: 1, id: "2" },
    expected: "open",
  }),
  changed("with its own clusters", () => {}, { snapshot: OWN, expected: "open" }, "version 2"),
  changed("with its own clusters", () => {}, { snapshot: OWN, expected: "open" }, "extended L2"),
]);

function withSnapshot(
  name: string,
  snapshot: Parameters<typeof encodeSnapshot>[0],
  more: Partial<HostileCase> = {},
): HostileCase {
  const write: HostileCase["write"] = (directory) =>
    imageFile(qcow2Sample("version 3", { snapshots: [snapshot] }).bytes)(directory);
  return { name, format: "qcow2", write, snapshot: OWN, ...more };
}

const DISK_SIZES = [0, 1, 511, 512, 4096, 65535, 65536, 65537, 65536 * 32, 2 ** 31].map(BigInt);
const HUGE_DISK_SIZES = [(1n << 53n) - 512n, 1n << 53n, (1n << 63n) - 512n, 1n << 63n, -512n, -1n];

describeHostile("snapshot extra data", [
  // QEMU 7.2 shows a snapshot in the present size of the disk, not in its own.
  ...[...DISK_SIZES, ...HUGE_DISK_SIZES].map((diskSize) =>
    withSnapshot(`disk size ${diskSize}`, { diskSize }, { oracle: "none" }),
  ),
  ...[0, 1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 1024].map((length) =>
    withSnapshot(
      `${length} bytes of extra data`,
      { extra: Buffer.alloc(length) },
      { oracle: "none" },
    ),
  ),
  withSnapshot("extra data of 1025 bytes", { extra: Buffer.alloc(1025) }, { expected: "refused" }),
]);

function snapshotL1(name: string, change: (image: Qcow2Image, l1: number) => unknown): HostileCase {
  return changed(name, (image) => change(image, image.region("snapshot 0 l1").offset), {
    snapshot: OWN,
  });
}

describeHostile("L1 tables of snapshots", [
  snapshotL1("entry to the header", (image, l1) => image.setU64(l1, 1n << 63n)),
  snapshotL1("entry to itself", (image, l1) => image.setU64(l1, BigInt(l1))),
  snapshotL1("entry past the end", (image, l1) => image.setU64(l1, 1n << 40n)),
  snapshotL1("entry unaligned", (image, l1) => image.setU64(l1, BigInt(l1) + 512n)),
  snapshotL1("entry above 2^53", (image, l1) => image.setU64(l1, 1n << 55n)),
  snapshotL1("all bits set", (image, l1) => image.setU64(l1, -1)),
  snapshotL1("that is the header", (image) => image.setSnapshot(0, "l1_table_offset", 0)),
  snapshotL1("that is the active L2 table", (image) =>
    image.setSnapshot(0, "l1_table_offset", image.region("l2 0").offset),
  ),
]);

describeHostile("where the snapshot table is", [
  changed("at the header", (image) => image.setHeader("snapshots_offset", 0)),
  changed("at the L1 table", (image) =>
    image.setHeader("snapshots_offset", image.region("l1").offset),
  ),
  changed("at the end of the file", (image) =>
    image.setHeader("snapshots_offset", image.bytes.length),
  ),
  changed("far past the end of the file", (image) =>
    image.setHeader("snapshots_offset", 1n << 50n),
  ),
  changed("more snapshots than the table has", (image) => image.setHeader("nb_snapshots", 500)),
  changed("snapshots without a table", (image) =>
    image.setHeader("nb_snapshots", 65536).setHeader("snapshots_offset", 1n << 40n),
  ),
]);

/** An image whose snapshot table of `count` equal entries lies in a sparse area behind everything else. */
function manySnapshots(
  name: string,
  count: number,
  entry: Buffer,
  more: Partial<HostileCase>,
): HostileCase {
  const write: HostileCase["write"] = (directory) => {
    const image = buildQcow2({
      clusterBits: 12,
      virtualSize: 65536,
      clusters: { 0: { kind: "zero" } },
    });
    image.setHeader("nb_snapshots", count).setHeader("snapshots_offset", image.bytes.length);
    writeBe(entry, 0, 8, image.region("l1").offset);
    const path = join(directory, "image.qcow2");
    const fd = openSync(path, "w");
    writeSync(fd, image.bytes);
    const batch = Buffer.concat(Array.from({ length: Math.min(1024, count) }, () => entry));
    for (let done = 0; done < count; done += 1024) {
      const part = batch.subarray(0, Math.min(1024, count - done) * entry.length);
      writeSync(fd, part, 0, part.length, image.bytes.length + done * entry.length);
    }
    ftruncateSync(fd, image.bytes.length + count * entry.length);
    closeSync(fd);
    return path;
  };
  return { name, format: "qcow2", write, command: "always", ...more };
}

function entryOf(name: string, id = "1"): Buffer {
  return encodeSnapshot(
    { id, name },
    { index: 0, l1: { offset: 0, entries: 1 }, virtualSize: 65536 },
  );
}

describeHostile("very many snapshots", [
  manySnapshots("65536 snapshots", 65536, entryOf("same"), { expected: "open", snapshot: OWN }),
  manySnapshots("65537 snapshots", 65537, entryOf("same"), { expected: "refused" }),
  manySnapshots("names of 65535 bytes, 32 MiB in all", 500, entryOf("x".repeat(65535)), {
    expected: "open",
  }),
  manySnapshots(
    "ids and names of 65535 bytes, 78 MiB in all",
    600,
    entryOf("x".repeat(65535), "1".repeat(65535)),
    { expected: "refused" },
  ),
]);
