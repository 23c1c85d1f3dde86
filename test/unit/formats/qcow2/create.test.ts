/** New qcow2 images byte by byte, and in which order they get to the disk. */

import { describe, expect, it } from "vitest";
import { imageLength, planQcow2, writeQcow2 } from "../../../../src/formats/qcow2/create.ts";
import type { Qcow2CreateOptions } from "../../../../src/formats/qcow2/create-check.ts";
import { CrashStates, STRATEGIES } from "../../../support/crash-states.ts";
import { qcow2Bytes } from "../../../support/qcow2-builder.ts";
import { Random } from "../../../support/random.ts";
import { SparseFile } from "../../../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../../../support/recording-storage.ts";
import { byScale } from "../../../support/scale.ts";
import { expectBytes } from "../../expect-bytes.ts";

const MIB = 1024 ** 2;

const PLAIN: Qcow2CreateOptions = {
  version: 3,
  virtualSize: 10 * MIB,
  clusterSize: 65536,
  refcountBits: 16,
  extendedL2: false,
  lazyRefcounts: false,
  compressionType: "zlib",
  preallocation: "off",
  backingFile: undefined,
  dataFile: undefined,
};

interface Written {
  readonly image: Buffer;
  readonly data: SparseFile;
  readonly log: RecordingLog;
  readonly initial: readonly SparseFile[];
}

/** Creates an image over what is there. */
function create(
  options: Partial<Qcow2CreateOptions>,
  before: Uint8Array = Buffer.alloc(0),
): Written {
  const plan = planQcow2({ ...PLAIN, ...options }, "new.qcow2");
  const content = SparseFile.empty();
  content.write(0, before);
  const data = SparseFile.empty();
  const initial = [content.clone(), data.clone()];
  const log: RecordingLog = { operations: [] };
  const storage = new RecordingStorage("new.qcow2", content, log, 0);
  const dataStorage =
    plan.options.dataFile === undefined
      ? undefined
      : new RecordingStorage("new.data", data, log, 1);
  Array.from(writeQcow2(plan, { storage, dataStorage }));
  expect(content.length).toBe(imageLength(plan));
  return { image: content.bytesAt(0, Math.min(content.length, 16 * MIB)), data, log, initial };
}

/** Bytes at offsets, in a cluster of zeros. */
function clusterOf(size: number, parts: Readonly<Record<number, string | Buffer>>): Buffer {
  const cluster = Buffer.alloc(size);
  for (const [offset, part] of Object.entries(parts)) {
    const bytes = typeof part === "string" ? Buffer.from(part.replaceAll(" ", ""), "hex") : part;
    bytes.copy(cluster, Number(offset));
  }
  return cluster;
}

const FEATURES: readonly (readonly [kind: number, bit: number, name: string])[] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];

/** Type, length, and 48 bytes for each name. */
const FEATURE_TABLE = Buffer.concat([
  Buffer.from("6803f857 00000180".replaceAll(" ", ""), "hex"),
  ...FEATURES.map(([kind, bit, name]) => {
    const row = Buffer.alloc(48);
    row.writeUInt8(kind, 0);
    row.writeUInt8(bit, 1);
    row.write(name, 2);
    return row;
  }),
]);

describe("the header of a new image", () => {
  it("says what the image is, and names the features", () => {
    const { image } = create({});
    const expected = clusterOf(65536, {
      0: "514649fb 00000003",
      20: "00000010 0000000000a00000",
      36: "00000001 0000000000030000 0000000000010000 00000001",
      96: "00000004 00000070",
      112: FEATURE_TABLE,
    });
    expectBytes(image.subarray(0, 65536), expected);
  });

  it("of version 2 has 72 bytes and nothing more", () => {
    const { image } = create({ version: 2, clusterSize: 8192 });
    const expected = clusterOf(8192, {
      0: "514649fb 00000002",
      // 10 MiB with tables of 8 MiB: two entries.
      20: "0000000d 0000000000a00000",
      36: "00000002 0000000000006000 0000000000002000 00000001",
    });
    expectBytes(image.subarray(0, 8192), expected);
  });

  it("has the names of other files, and no feature names where clusters are small", () => {
    const { image } = create({
      clusterSize: 4096,
      virtualSize: MIB,
      lazyRefcounts: true,
      compressionType: "zstd",
      refcountBits: 64,
      backingFile: { name: "base.qcow2", format: "qcow2" },
      dataFile: { name: "new.data", raw: false },
    });
    const expected = clusterOf(4096, {
      0: "514649fb 00000003 0000000000000098 0000000a",
      20: "0000000c 0000000000100000",
      36: "00000001 0000000000003000 0000000000001000 00000001",
      // External data file and compression type; lazy refcounts.
      72: "000000000000000c 0000000000000001",
      96: "00000006 00000070 01",
      112: Buffer.from("\xe2\x79\x2a\xca\0\0\0\x05qcow2", "latin1"),
      128: Buffer.from("DATA\0\0\0\x08new.data", "latin1"),
      152: Buffer.from("base.qcow2"),
    });
    expectBytes(image.subarray(0, 4096), expected);
  });

  it("has the bits of extended L2 entries and of raw data files", () => {
    const { image } = create({ extendedL2: true, dataFile: { name: "new.data", raw: true } });
    expect(image.subarray(72, 96).toString("hex")).toBe(
      "0000000000000014" + "0000000000000000" + "0000000000000002",
    );
  });

  it("must fit its cluster", () => {
    // 112 bytes, 16 for the format, 8 for the end.
    const overlay = (name: string) => ({ backingFile: { name, format: "raw" }, clusterSize: 512 });
    expect(() => create(overlay("b".repeat(376)))).not.toThrow();
    expect(() => create(overlay("b".repeat(377)))).toThrow(
      /^new\.qcow2: the header with the names of other files has 513 bytes, more than a cluster of 512/,
    );
  });
});

describe("the tables of a new image", () => {
  it.each([1, 2, 4, 8, 16, 32, 64])("count each cluster once, with refcount_bits %i", (bits) => {
    for (const preallocation of ["off", "metadata"] as const) {
      for (const virtualSize of [0, 512, 100_352, MIB]) {
        const { image } = create({
          clusterSize: 512,
          refcountBits: bits,
          virtualSize,
          preallocation,
        });
        const tableOffset = Number(image.readBigUInt64BE(48));
        const tableEntries = (image.readUInt32BE(56) * 512) / 8;
        const blockEntries = (512 * 8) / bits;
        const counts: bigint[] = [];
        for (let entry = 0; entry < tableEntries; entry++) {
          const block = Number(image.readBigUInt64BE(tableOffset + entry * 8));
          if (block === 0) continue;
          expect(counts.length).toBe(entry * blockEntries);
          for (let index = 0; index < blockEntries; index++) {
            counts.push(refcountAt(image.subarray(block, block + 512), index, bits));
          }
        }
        const used = image.length / 512;
        expect(counts.slice(0, used).every((count) => count === 1n)).toBe(true);
        expect(counts.slice(used).every((count) => count === 0n)).toBe(true);
        expect(counts.length).toBeGreaterThanOrEqual(used);
      }
    }
  });

  it.each([
    ["image", undefined, false],
    ["image, extended", undefined, true],
    ["data file", { name: "new.data", raw: true }, false],
  ])("map every cluster of the disk, in the %s", (_where, dataFile, extendedL2) => {
    const clusterSize = 16384;
    const virtualSize = 100 * MIB + 512;
    const { image } = create({
      ...{ virtualSize, clusterSize, extendedL2, dataFile },
      preallocation: "metadata",
    });
    const entryBytes = extendedL2 ? 16 : 8;
    const entries = clusterSize / entryBytes;
    const clusters = Math.ceil(virtualSize / clusterSize);
    const l1Offset = Number(image.readBigUInt64BE(40));
    expect(image.readUInt32BE(36)).toBe(Math.ceil(clusters / entries));
    const copied = 1n << 63n;
    const firstTable = BigInt(l1Offset + clusterSize);
    const firstData = firstTable + BigInt(image.readUInt32BE(36) * clusterSize);
    for (let index = 0; index < image.readUInt32BE(36) * entries; index++) {
      const l1Entry = image.readBigUInt64BE(l1Offset + Math.floor(index / entries) * 8);
      const table = firstTable + BigInt(Math.floor(index / entries) * clusterSize);
      const at = Number(table) + (index % entries) * entryBytes;
      const host = (dataFile === undefined ? firstData : 0n) + BigInt(index * clusterSize);
      const wanted = index < clusters ? host | copied : 0n;
      if (l1Entry !== (table | copied) || image.readBigUInt64BE(at) !== wanted) {
        expect.fail(`guest cluster ${index}: L1 ${l1Entry}, L2 ${image.readBigUInt64BE(at)}`);
      }
      if (extendedL2) expect(image.readBigUInt64BE(at + 8)).toBe(0n);
    }
  });

  it("are there whenever the data file alone must be the disk", () => {
    const { image, data } = create({ dataFile: { name: "new.data", raw: true } });
    expect(data.length).toBe(10 * MIB);
    // Header, refcount table and block, L1 table, one L2 table; guest offset 0 is host offset 0.
    expect(image.length).toBe(5 * 65536);
    expect(image.readBigUInt64BE(4 * 65536)).toBe(1n << 63n);
    expect(create({ dataFile: { name: "new.data", raw: false } }).image.length).toBe(4 * 65536);
  });
});

/** The slow way: bit by bit for narrow refcounts, byte by byte for wide ones. */
function refcountAt(block: Buffer, index: number, bits: number): bigint {
  let value = 0n;
  if (bits >= 8) {
    for (let byte = 0; byte < bits / 8; byte++) {
      value = value * 256n + BigInt(block.readUInt8((index * bits) / 8 + byte));
    }
    return value;
  }
  for (let bit = 0; bit < bits; bit++) {
    const position = index * bits + bit;
    if (((block.readUInt8(Math.floor(position / 8)) >> (position % 8)) & 1) === 1) {
      value += 1n << BigInt(bit);
    }
  }
  return value;
}

describe("a crash while an image is made", () => {
  const OLD = qcow2Bytes({
    clusterBits: 9,
    virtualSize: 8192,
    clusters: { 3: { kind: "data", bytes: Uint8Array.of(1, 2, 3) } },
  });

  it.each<[string, Uint8Array, Partial<Qcow2CreateOptions>]>([
    ["in a new file", Buffer.alloc(0), { backingFile: { name: "base", format: "raw" } }],
    ["over another image", OLD, { backingFile: { name: "base", format: "raw" } }],
    [
      "over another image, small clusters",
      OLD,
      { clusterSize: 512, virtualSize: MIB, preallocation: "metadata" },
    ],
    ["with a data file", OLD, { dataFile: { name: "new.data", raw: true } }],
    ["with all of it written", OLD, { preallocation: "full", virtualSize: MIB }],
  ])("leaves the old image, none, or the new one: %s", (label, before, options) => {
    const { image, data, log, initial } = create(options, before);
    const states = new CrashStates(initial, log);
    const random = new Random(`create crash ${label}`);
    const seen = { old: 0, none: 0, new: 0 };
    const look = (files: readonly SparseFile[]): void => {
      const [file = SparseFile.empty(), dataFile = SparseFile.empty()] = files;
      const bytes = file.bytesAt(0, file.length);
      if (bytes.subarray(0, 4).toString("latin1") !== "QFI\xfb") {
        seen.none++;
      } else if (bytes.equals(before)) {
        seen.old++;
      } else {
        expectBytes(bytes, image, "the image after a crash");
        expect(dataFile.length).toBe(data.length);
        seen.new++;
      }
    };
    for (let position = 0; position <= log.operations.length; position++) {
      look(states.prefix(position));
    }
    for (let round = 0; round < byScale(300, 5000); round++) {
      const position = random.between(0, log.operations.length);
      look(states.random(position, random.pick(STRATEGIES), random));
    }
    expect(seen.none).toBeGreaterThan(0);
    expect(seen.new).toBeGreaterThan(0);
    if (before.length > 0) expect(seen.old).toBeGreaterThan(0);
    expect(log.operations.at(-1)?.kind).toBe("sync");
  });
});
