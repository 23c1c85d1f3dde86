// qcow2 L1, L2 and refcount entries that point nowhere, at themselves, or mean two things at once.

import { describeHostile, type HostileCase, imageFile } from "../support/hostile-case.ts";
import { type Qcow2SampleName, qcow2Sample, SAMPLE_CLUSTERS } from "../support/hostile-samples.ts";
import { buildQcow2, type Qcow2Image } from "../support/qcow2-builder.ts";
import { Random } from "../support/random.ts";

const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const RESERVED_LOW = 0x1fen;
const RESERVED_HIGH = 0x3fn << 56n;

/** Offsets that no table entry may hold, or that lead somewhere unexpected. */
function oddOffsets(image: Qcow2Image): [label: string, offset: bigint][] {
  const clusterSize = BigInt(image.clusterSize);
  const end = BigInt(image.bytes.length);
  return [
    ["the header", 0n],
    ["the refcount table", BigInt(image.region("refcount table").offset)],
    ["the L1 table", BigInt(image.region("l1").offset)],
    ["the L2 table", BigInt(image.region("l2 0").offset)],
    ["the last cluster", end - clusterSize],
    ["the end of the file", end],
    ["one cluster past the end", end + clusterSize],
    ["far past the end", end * 1024n],
    ["2^53", 1n << 53n],
    ["2^55", 1n << 55n],
    ["the highest offset", (1n << 56n) - clusterSize],
    ["512 bytes into a cluster", clusterSize + 512n],
    ["half a cluster", clusterSize / 2n],
  ];
}

function changed(
  sample: Qcow2SampleName,
  name: string,
  change: (image: Qcow2Image) => unknown,
  more: Partial<HostileCase> = {},
): HostileCase {
  const write: HostileCase["write"] = (directory) => {
    const image = qcow2Sample(sample);
    change(image);
    return imageFile(image.bytes)(directory);
  };
  return { name: `${sample}: ${name}`, format: "qcow2", write, ...more };
}

const SAMPLES = ["version 3", "version 2", "extended L2"] as const;

describeHostile(
  "L1 and L2 entries that point somewhere odd",
  SAMPLES.flatMap((sample) =>
    oddOffsets(qcow2Sample(sample)).flatMap(([label, offset]) =>
      [0n, COPIED].flatMap((copied) => [
        changed(sample, `L1 entry to ${label}, copied ${copied !== 0n}`, (image) =>
          image.setL1(0, offset | copied),
        ),
        changed(sample, `L2 entry to ${label}, copied ${copied !== 0n}`, (image) =>
          image.setL2(6, offset | copied),
        ),
        changed(
          sample,
          `L2 entry of an unallocated cluster to ${label}, copied ${copied !== 0n}`,
          (image) => image.setL2(9, offset | copied, 0xffff_ffffn),
        ),
      ]),
    ),
  ),
  2,
);

describeHostile(
  "reserved bits and flags",
  SAMPLES.flatMap((sample) => [
    changed(sample, "reserved L1 bits", (image) =>
      image.setL1(0, image.getU64(image.l1EntryOffset(0)) | 0x1ffn | (0x7fn << 56n)),
    ),
    changed(sample, "reserved low L2 bits", (image) =>
      image.setL2(6, image.getL2(6) | RESERVED_LOW),
    ),
    changed(sample, "reserved high L2 bits", (image) =>
      image.setL2(6, image.getL2(6) | RESERVED_HIGH),
    ),
    changed(sample, "a zero flag on data", (image) => image.setL2(6, image.getL2(6) | 1n)),
    changed(sample, "a zero flag without an offset", (image) => image.setL2(9, 1n)),
    changed(sample, "a zero flag with COPIED only", (image) => image.setL2(9, COPIED | 1n)),
    changed(sample, "COPIED on a compressed entry", (image) =>
      image.setL2(3, image.getL2(3) | COPIED),
    ),
    changed(sample, "the zero flag in a compressed entry", (image) =>
      image.setL2(3, image.getL2(3) | 1n),
    ),
    changed(sample, "COPIED alone in L1", (image) => image.setL1(0, COPIED)),
    changed(sample, "all bits set in L1", (image) => image.setL1(0, -1)),
    changed(sample, "all bits set in L2", (image) => image.setL2(6, -1)),
    changed(sample, "an unaligned preallocated zero cluster", (image) =>
      image.setL2(6, (image.getL2(6) | 1n) + 512n),
    ),
  ]),
);

const BITMAPS: [label: string, bitmap: bigint][] = [
  ["both bits of sub-cluster 0", 1n | (1n << 32n)],
  ["both bits of sub-cluster 31", (1n << 31n) | (1n << 63n)],
  ["both bits everywhere", -1n],
  ["no bits", 0n],
  ["allocated in the second half only", 0xffff_0000n],
  ["alternating allocated and zero", 0x5555_5555n | (0xaaaa_aaaan << 32n)],
];

describeHostile(
  "sub-cluster bitmaps",
  BITMAPS.flatMap(([label, bitmap]) => [
    changed("extended L2", `${label}, over data`, (image) =>
      image.setL2(6, image.getL2(6), bitmap),
    ),
    changed("extended L2", `${label}, without an offset`, (image) => image.setL2(9, 0n, bitmap)),
    changed("extended L2", `${label}, with COPIED and no offset`, (image) =>
      image.setL2(9, COPIED, bitmap),
    ),
    changed("extended L2", `${label}, over a compressed cluster`, (image) =>
      image.setL2(3, image.getL2(3), bitmap),
    ),
    changed("extended L2", `${label}, past the end`, (image) => image.setL2(9, 1n << 40n, bitmap)),
    changed("extended L2", `${label}, unaligned`, (image) =>
      image.setL2(6, image.getL2(6) + 512n, bitmap),
    ),
  ]),
);

describeHostile("tables that refer to themselves", [
  changed("version 3", "L1 table at the header", (image) => image.setHeader("l1_table_offset", 0)),
  changed("version 3", "L1 table that is the L2 table", (image) =>
    image.setHeader("l1_table_offset", image.region("l2 0").offset),
  ),
  changed("version 3", "L1 entry to the L1 table, every entry", (image) => {
    for (let entry = 0; entry < 512; entry++) {
      image.setL1(entry, BigInt(image.region("l1").offset));
    }
  }),
  changed("version 3", "L2 table whose entries all are itself", (image) => {
    for (let cluster = 0; cluster < SAMPLE_CLUSTERS; cluster++) {
      image.setL2(cluster, BigInt(image.region("l2 0").offset) | COPIED);
    }
  }),
  changed("version 3", "L2 table whose compressed entries are itself", (image) => {
    for (let cluster = 0; cluster < SAMPLE_CLUSTERS; cluster++) {
      image.setL2(cluster, COMPRESSED | BigInt(image.region("l2 0").offset));
    }
  }),
  changed("version 3", "every structure at the same cluster", (image) => {
    image
      .setHeader("l1_table_offset", 4096)
      .setHeader("refcount_table_offset", 4096)
      .setHeader("snapshots_offset", 4096);
  }),
  {
    name: "all L1 entries to one L2 table",
    format: "qcow2",
    write: (directory) => {
      const image = buildQcow2({
        clusterBits: 9,
        virtualSize: 64 * 64 * 512,
        clusters: {
          0: { kind: "data", bytes: new Random("one L2", 1).bytes(512) },
          5: { kind: "zero" },
        },
      });
      for (let entry = 0; entry < 64; entry++) {
        image.setL1(entry, BigInt(image.region("l2 0").offset));
      }
      return imageFile(image.bytes)(directory);
    },
    expected: "open",
    command: "always",
  },
]);

describeHostile("refcount structures, which reading does not need", [
  changed("version 3", "refcount table entry past the end", (image) =>
    image.setRefcountTable(0, 1n << 50n),
  ),
  changed("version 3", "refcount table entry unaligned", (image) =>
    image.setRefcountTable(0, 0x1234),
  ),
  changed("version 3", "refcount table entry 0", (image) => image.setRefcountTable(0, 0)),
  changed("version 3", "refcount table entry to itself", (image) =>
    image.setRefcountTable(0, image.region("refcount table").offset),
  ),
  changed("version 3", "all refcounts 0", (image) => {
    const block = image.region("refcount block 0");
    image.bytes.fill(0, block.offset, block.offset + block.length);
  }),
  changed("version 3", "all refcounts at their maximum", (image) => {
    const block = image.region("refcount block 0");
    image.bytes.fill(0xff, block.offset, block.offset + block.length);
  }),
]);
