/** Refcounts on disk: what is found, changed and made larger, read back from the bytes of the file. */

import { describe, expect, it } from "vitest";
import { HeaderWriter } from "../../../../../src/formats/qcow2/writer/header-writer.ts";
import { RefcountStore } from "../../../../../src/formats/qcow2/writer/refcount-store.ts";
import { SessionMarks } from "../../../../../src/formats/qcow2/writer/session-marks.ts";
import { NUMBER } from "../../../../../src/formats/qcow2/writer/shared-state.ts";
import type { Qcow2Options } from "../../../../support/qcow2-builder.ts";
import { Random } from "../../../../support/random.ts";
import type { RecordingStorage } from "../../../../support/recording-storage.ts";
import { byScale } from "../../../../support/scale.ts";
import { type WriterState, writerState } from "./writer-state.ts";

interface Sample extends WriterState {
  readonly store: RefcountStore;
  readonly bits: number;
}

function sampleOf(options: Qcow2Options): Sample {
  const writer = writerState(options);
  const { layout, storage, state } = writer;
  const headerWriter = new HeaderWriter(storage, layout.header.version);
  const marks = new SessionMarks(state, storage, headerWriter);
  const store = new RefcountStore(layout, storage, state, headerWriter, marks);
  return { ...writer, store, bits: layout.refcountBits };
}

/** Where the file says that its refcount blocks are, in the order of the table. */
function blocksOf({ content }: RecordingStorage, clusterSize: number): number[] {
  const table = Number(content.bytesAt(48, 8).readBigUInt64BE());
  const clusters = content.bytesAt(56, 4).readUInt32BE();
  const bytes = content.bytesAt(table, clusters * clusterSize);
  return Array.from({ length: bytes.length / 8 }, (_, at) => Number(bytes.readBigUInt64BE(at * 8)));
}

/** One refcount, read bit by bit. */
function refcountIn(block: Buffer, index: number, bits: number): number {
  const bitAt = (bit: number): number => ((block[Math.floor(bit / 8)] ?? 0) >> (bit % 8)) & 1;
  let value = 0;
  if (bits < 8) {
    for (let bit = bits - 1; bit >= 0; bit--) value = value * 2 + bitAt(index * bits + bit);
  } else {
    const start = (index * bits) / 8;
    for (const byte of block.subarray(start, start + bits / 8)) value = value * 256 + byte;
  }
  return value;
}

/** All refcounts of the file that are not 0, by cluster. */
function refcountsOf({ storage, layout, bits }: Sample): Map<number, number> {
  const { clusterSize } = layout;
  const perBlock = (clusterSize * 8) / bits;
  const counts = new Map<number, number>();
  blocksOf(storage, clusterSize).forEach((offset, number) => {
    if (offset === 0) return;
    const block = storage.content.bytesAt(offset, clusterSize);
    for (let index = 0; index < perBlock; index++) {
      const value = refcountIn(block, index, bits);
      if (value !== 0) counts.set(number * perBlock + index, value);
    }
  });
  return counts;
}

/** Sets refcounts at random, in the blocks that there are. */
function scatter(sample: Sample, random: Random, max: number): void {
  const end = sample.store.entriesPerBlock;
  for (let round = 0; round < 60; round++) {
    const first = random.between(sample.built.bytes.length / sample.layout.clusterSize, end - 1);
    const count = Math.min(random.between(1, 12), end - first);
    const value = random.between(0, max);
    sample.store.change({ first, count }, () => value);
  }
}

/** Whether all clusters of a range are in use, or free. */
function isUniform(
  counts: ReadonlyMap<number, number>,
  from: number,
  to: number,
  what: "used" | "free",
): boolean {
  for (let cluster = from; cluster < to; cluster++) {
    if (counts.has(cluster) !== (what === "used")) return false;
  }
  return true;
}

const WIDTHS = [0, 1, 2, 3, 4, 5, 6].map((refcountOrder) => ({
  refcountOrder,
  bits: 2 ** refcountOrder,
}));

describe.each(WIDTHS)("RefcountStore, $bits bits", ({ refcountOrder, bits }) => {
  const options: Qcow2Options = { clusterBits: 9, virtualSize: 65536, refcountOrder };
  const max = Math.min(2 ** bits - 1, Number.MAX_SAFE_INTEGER);

  it("reads what is there", () => {
    const sample = sampleOf(options);
    const used = sample.built.bytes.length / 512;
    expect(sample.store.entriesPerBlock).toBe((512 * 8) / bits);
    for (const cluster of [0, 1, used - 1]) expect(sample.store.read(cluster)).toBe(1);
    // Of the last cluster of the block, of the next one, and beyond the table.
    const { entriesPerBlock, table } = sample.store;
    const tableEntries = table.entries;
    expect(tableEntries).toBe(64);
    const last = entriesPerBlock * tableEntries;
    for (const cluster of [used, entriesPerBlock - 1, entriesPerBlock, last - 1, last, last * 2]) {
      expect(sample.store.read(cluster), `cluster ${cluster}`).toBe(0);
    }
    expect(sample.store.lastUsed()).toBe(used - 1);
  });

  it("changes runs of refcounts, and no others", () => {
    const sample = sampleOf(options);
    const random = new Random(`refcount store ${bits}`);
    const model = refcountsOf(sample);
    const end = sample.store.entriesPerBlock;
    for (let round = 0; round < 50; round++) {
      const first = random.below(end);
      const count = random.pick([1, 1, end - first, random.between(1, end - first)]);
      const seen: [number, number][] = [];
      const value = random.pick([0, 1, max, random.below(max)]);
      sample.store.change({ first, count }, (cluster, refcount) => {
        seen.push([cluster, refcount]);
        return value;
      });
      expect(seen).toEqual(
        Array.from({ length: count }, (_, at) => [first + at, model.get(first + at) ?? 0]),
      );
      for (let cluster = first; cluster < first + count; cluster++) {
        if (value === 0) model.delete(cluster);
        else model.set(cluster, value);
      }
      const asked = random.below(end);
      expect(sample.store.read(asked)).toBe(model.get(asked) ?? 0);
      expect(sample.store.lastUsed()).toBe(Math.max(-1, ...model.keys()));
    }
    const counts = refcountsOf(sample);
    expect(new Map([...counts].sort())).toEqual(new Map([...model].sort()));
  });

  it("finds what is free, lowest first, as a scan does", () => {
    const sample = sampleOf(options);
    const random = new Random(`find free ${bits}`);
    scatter(sample, random, Math.min(max, 2));
    const counts = refcountsOf(sample);
    const { entriesPerBlock } = sample.store;
    for (let round = 0; round < byScale(10, 100); round++) {
      const from = random.below(entriesPerBlock * 3);
      const wanted = random.between(1, entriesPerBlock * 2);
      const runsMax = random.between(1, 6);
      const runs = sample.store.findFree(from, wanted, runsMax);
      const total = runs.reduce((sum, { count }) => sum + count, 0);
      expect(total).toBeLessThanOrEqual(wanted);
      expect(total === wanted || runs.length === runsMax).toBe(true);
      let next = from;
      for (const { first, count } of runs) {
        // All that was passed over is in use.
        expect(isUniform(counts, next, first, "used")).toBe(true);
        expect(isUniform(counts, first, first + count, "free")).toBe(true);
        expect(first % entriesPerBlock).toBeLessThanOrEqual(entriesPerBlock - count);
        next = first + count;
      }
    }
  });

  it("finds nothing behind what the table counts", () => {
    const { store } = sampleOf(options);
    const end = store.entriesPerBlock * store.table.entries;
    expect(store.findFree(end, 1, 1)).toEqual([]);
    expect(store.findFree(end + 5, 100, 10)).toEqual([]);
    expect(store.findFree(end - 1, 100, 10)).toEqual([{ first: end - 1, count: 1 }]);
  });

  it("makes blocks that count themselves", () => {
    const sample = sampleOf(options);
    const { store, storage } = sample;
    const before = refcountsOf(sample);
    const first = store.entriesPerBlock * 3;
    const run = { first: first + 2, count: Math.min(7, store.entriesPerBlock - 2) };
    storage.setLength((run.first + run.count) * 512);
    store.writeNewBlock(run.first, run);
    expect(refcountsOf(sample)).toEqual(before);
    store.table.link(3, run.first);
    expect(store.table.blockOffset(3)).toBe(run.first * 512);
    for (let at = run.first; at < run.first + run.count; at++) before.set(at, 1);
    expect(refcountsOf(sample)).toEqual(before);
  });

  it("finds the blocks that its table refers to, from either end", () => {
    const { store, storage } = sampleOf(options);
    const { table } = store;
    const linked = [0, 3, table.entries - 1];
    storage.setLength(store.entriesPerBlock * table.entries * 512);
    for (const block of linked.slice(1)) table.link(block, store.entriesPerBlock * block);
    const found = (from: number, step: 1 | -1): number[] => {
      const next = table.linkedBlock(from, step);
      return next < 0 ? [] : [next, ...found(next + step, step)];
    };
    expect(found(0, 1)).toEqual(linked);
    expect(found(table.entries - 1, -1)).toEqual([...linked].reverse());
    expect(found(1, -1)).toEqual([0]);
    expect(found(table.entries, 1)).toEqual([]);
  });

  it("moves to a larger table behind all that the old one counts", () => {
    const sample = sampleOf(options);
    const { store, state, storage, log } = sample;
    scatter(sample, new Random(`grow ${bits}`), Math.min(max, 3));
    const before = refcountsOf(sample);
    const counted = store.entriesPerBlock * store.table.entries;
    const oldTable = Number(sample.built.header("refcount_table_offset")) / 512;
    log.operations.length = 0;
    const grown = store.growTable();
    expect(grown.oldTable).toEqual({ first: oldTable, count: 1 });
    expect(grown.table).toEqual({ first: counted, count: 2 });
    expect(grown.blocks.first).toBe(counted + 2);

    // All is durable before the header refers to it, and then that is.
    const header = log.operations.findIndex((one) => one.kind === "write" && one.offset === 48);
    expect(log.operations.length).toBe(header + 1);
    expect(log.operations[header - 1]?.kind).toBe("sync");
    expect(log.operations[header]).toMatchObject({ data: { length: 12 } });

    for (let at = counted; at < counted + 2 + grown.blocks.count; at++) before.set(at, 1);
    expect(refcountsOf(sample)).toEqual(before);
    expect(storage.currentLength()).toBeGreaterThanOrEqual(
      (counted + 2 + grown.blocks.count) * 512,
    );
    state.set(NUMBER.refcountTableOffset, counted * 512);
    state.set(NUMBER.refcountTableClusters, 2);
    expect(store.table.entries).toBe(128);
    expect(store.read(counted)).toBe(1);
    expect(store.read(0)).toBe(1);
  });

  it("allocates areas behind all that is in use, and counts them", () => {
    const sample = sampleOf(options);
    const { store, storage } = sample;
    const { entriesPerBlock } = store;
    const before = refcountsOf(sample);
    // What lay in the file there must not show.
    storage.content.write(store.lastUsed() * 512 + 512, new Random("rubbish").bytes(65536));
    for (const clusters of [1, 5, entriesPerBlock - 1, entriesPerBlock, entriesPerBlock + 1, 1]) {
      const used = store.lastUsed();
      const area = store.allocateArea(clusters, () => undefined);
      if (area === undefined) throw new Error("no room");
      expect(area.first).toBeGreaterThan(used);
      for (const { first, count } of [{ first: area.first, count: clusters }, area.blocks]) {
        for (let at = first; at < first + count; at++) before.set(at, 1);
      }
      expect(refcountsOf(sample)).toEqual(before);
      const bytes = storage.content.bytesAt(area.first * 512, clusters * 512);
      expect(bytes.every((byte) => byte === 0)).toBe(true);
      expect(storage.currentLength()).toBeGreaterThanOrEqual(Math.max(...before.keys()) * 512);
    }
    expect(store.allocateArea(entriesPerBlock * 64, () => undefined)).toBeUndefined();
    expect(refcountsOf(sample)).toEqual(before);
  });

  it("keeps blocks that there are, though they count nothing", () => {
    const sample = sampleOf(options);
    const { store, storage } = sample;
    const { entriesPerBlock } = store;
    const empty = store.lastUsed() + 1;
    store.change({ first: empty, count: 1 }, () => 1);
    storage.content.write(empty * 512, Buffer.alloc(512));
    store.table.link(2, empty);
    const before = refcountsOf(sample);
    const area = store.allocateArea(entriesPerBlock + 5, () => undefined);
    if (area === undefined) throw new Error("no room");
    expect(store.table.blockOffset(2)).toBe(empty * 512);
    const { first, count } = area.blocks;
    for (let at = area.first; at < area.first + entriesPerBlock + 5; at++) before.set(at, 1);
    for (let at = first; at < first + count; at++) before.set(at, 1);
    expect(refcountsOf(sample)).toEqual(before);
  });
});

describe("RefcountStore", () => {
  it("looks through blocks of more than one piece", () => {
    // 128 KiB of refcounts of 16 bits: 65536 clusters, in two pieces.
    const sample = sampleOf({ clusterBits: 17 });
    const { store } = sample;
    const end = store.entriesPerBlock;
    expect(end).toBe(65536);
    const used = store.lastUsed() + 1;
    store.change({ first: used, count: 32_767 - used }, () => 2);
    store.change({ first: 32_769, count: 10 }, () => 1);
    expect(store.findFree(0, 5, 5)).toEqual([
      { first: 32_767, count: 2 },
      { first: 32_779, count: 3 },
    ]);
    store.change({ first: 32_760, count: 16 }, (_, refcount) => refcount + 1);
    expect(store.read(32_766)).toBe(3);
    expect(store.read(32_767)).toBe(1);
    expect(store.read(32_768)).toBe(1);
    expect(store.read(32_769)).toBe(2);
    expect(store.lastUsed()).toBe(32_778);
    store.change({ first: end - 1, count: 1 }, () => 1);
    expect(store.lastUsed()).toBe(end - 1);
  });

  it("takes refcounts without a block for 0, which nobody can change", () => {
    const { store, log } = sampleOf({ clusterBits: 9 });
    const seen: number[] = [];
    const before = log.operations.length;
    store.change({ first: 256 * 5 + 3, count: 4 }, (cluster, refcount) => {
      seen.push(cluster, refcount);
      return refcount;
    });
    expect(seen).toEqual([1283, 0, 1284, 0, 1285, 0, 1286, 0]);
    expect(log.operations.length).toBe(before);
  });

  it("changes a run that reaches over several blocks", () => {
    const sample = sampleOf({
      clusterBits: 9,
      virtualSize: 512 * 600,
      clusters: manyClusters(600),
    });
    const { store } = sample;
    const before = refcountsOf(sample);
    store.change({ first: 200, count: 400 }, (_, refcount) => refcount + 1);
    for (let cluster = 200; cluster < 600; cluster++) {
      before.set(cluster, (before.get(cluster) ?? 0) + 1);
    }
    expect(refcountsOf(sample)).toEqual(before);
  });

  it.each([0x200n, 0x1_0000_0001_0200n, 1n << 54n, (1n << 63n) | 0x10000n])(
    "refuses a block at %s",
    (offset) => {
      const sample = sampleOf({ clusterBits: 16 });
      const table = sample.built.region("refcount table").offset;
      const entry = Buffer.alloc(8);
      entry.writeBigUInt64BE(offset);
      sample.storage.content.write(table + 8, entry);
      expect(() => sample.store.table.blockOffset(1)).toThrow(
        expect.objectContaining({
          name: "CorruptionError",
          message: expect.stringMatching(
            /^disk\.qcow2: refcount block offset .* is not a multiple of the cluster size 0x10000$/,
          ),
        }),
      );
      expect(sample.store.table.blockOffset(0)).toBe(
        sample.built.region("refcount block 0").offset,
      );
    },
  );

  it("makes no table that QEMU would refuse", () => {
    const sample = sampleOf({ clusterBits: 9 });
    const { state, store } = sample;
    // 8 MiB, somewhere.
    state.set(NUMBER.refcountTableClusters, (8 * 1024 * 1024) / 512);
    sample.log.operations.length = 0;
    expect(() => store.growTable()).toThrow(
      expect.objectContaining({ code: "EFBIG", message: "disk.qcow2: the refcount table is full" }),
    );
    expect(sample.log.operations).toEqual([]);
  });
});

/** Data in each of the first clusters of a disk. */
function manyClusters(count: number): Qcow2Options["clusters"] {
  const bytes = Buffer.alloc(512, 1);
  return Object.fromEntries(
    Array.from({ length: count }, (_, index) => [index, { kind: "data", bytes } as const]),
  );
}
