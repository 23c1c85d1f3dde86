// The seven numbers of a whole image file, computed apart from production code: which clusters are used, by a small
// parser of its own; what the host stores, by qemu-img map of the file as a raw one.

import { readFileSync } from "node:fs";
import { asArray, asRecord, booleanIn, numberIn } from "./json.ts";
import { imageMap } from "./qemu.ts";

export interface ExpectedAllocation {
  readonly "file-size": number;
  readonly "used-data": number;
  readonly "used-zero": number;
  readonly "used-discarded": number;
  readonly "used-overrun": number;
  readonly "unused-data": number;
  readonly "unused-zero": number;
  readonly "unused-discarded": number;
}

interface Range {
  readonly start: number;
  readonly end: number;
}

/** @param path an image small enough to be read whole */
export async function expectedAllocation(
  path: string,
  format: "raw" | "qcow2" | "qed",
): Promise<ExpectedAllocation> {
  // Before anything is read: what is cached of space that was only allocated counts as data for the host.
  const map = asArray(await imageMap(["-f", "raw", path])).map(asRecord);
  const bytes = readFileSync(path);
  const data = dataRanges(map, bytes.length);
  const used =
    format === "raw"
      ? [{ start: 0, end: bytes.length }]
      : format === "qcow2"
        ? usedOfQcow2(bytes)
        : usedOfQed(bytes);
  const inFile = used.map(({ start, end }) => ({
    start: Math.min(start, bytes.length),
    end: Math.min(end, bytes.length),
  }));
  const usedBytes = total(inFile);
  const usedData = common(inFile, data);
  const unusedData = total(data) - usedData;
  return {
    "file-size": bytes.length,
    "used-data": usedData,
    "used-zero": usedBytes - usedData,
    "used-discarded": 0,
    "used-overrun": total(used) - usedBytes,
    "unused-data": unusedData,
    "unused-zero": bytes.length - usedBytes - unusedData,
    "unused-discarded": 0,
  };
}

function total(ranges: readonly Range[]): number {
  return ranges.reduce((sum, { start, end }) => sum + end - start, 0);
}

/** Bytes that are in both. */
function common(some: readonly Range[], others: readonly Range[]): number {
  let sum = 0;
  for (const a of some) {
    for (const b of others) {
      sum += Math.max(0, Math.min(a.end, b.end) - Math.max(a.start, b.start));
    }
  }
  return sum;
}

function dataRanges(map: readonly Readonly<Record<string, unknown>>[], length: number): Range[] {
  return map
    .filter((row) => booleanIn(row, "data"))
    .map((row) => {
      const start = numberIn(row, "start");
      // QEMU rounds the length of the file up to sectors.
      return { start, end: Math.min(start + numberIn(row, "length"), length) };
    });
}

/** Clusters whose refcount is not 0, joined to ranges. Source: qcow2 specification, "Host cluster management". */
function usedOfQcow2(bytes: Buffer): Range[] {
  const clusterSize = 2 ** bytes.readUInt32BE(20);
  const width = bytes.readUInt32BE(4) === 2 ? 16 : 2 ** bytes.readUInt32BE(96);
  const table = Number(bytes.readBigUInt64BE(48));
  const blockEntries = (clusterSize * 8) / width;
  const clusters: number[] = [];
  for (let block = 0; block < (bytes.readUInt32BE(56) * clusterSize) / 8; block++) {
    const offset = Number(bytes.readBigUInt64BE(table + block * 8) & ~0x1ffn);
    if (offset === 0) continue;
    for (let index = 0; index < blockEntries; index++) {
      if (refcountAt(bytes, offset, index, width)) clusters.push(block * blockEntries + index);
    }
  }
  return joined(clusters, clusterSize);
}

/** Whether a refcount is other than 0. What the file lacks is 0. */
function refcountAt(bytes: Buffer, block: number, index: number, width: number): boolean {
  if (width >= 8) {
    const start = block + (index * width) / 8;
    return bytes.subarray(start, start + width / 8).some((byte) => byte !== 0);
  }
  const bit = index * width;
  const byte = bytes[block + Math.floor(bit / 8)] ?? 0;
  return ((byte >> (bit % 8)) & ((1 << width) - 1)) !== 0;
}

/** The header, and what tables refer to. Source: QED specification, "Tables". */
function usedOfQed(bytes: Buffer): Range[] {
  const clusterSize = bytes.readUInt32LE(4);
  const tableClusters = bytes.readUInt32LE(8);
  const clusters = new Set<number>();
  const add = (offset: number, count: number): void => {
    for (let index = 0; index < count; index++) clusters.add(offset / clusterSize + index);
  };
  const entries = (table: number): number[] =>
    Array.from({ length: (tableClusters * clusterSize) / 8 }, (_, index) =>
      Number(bytes.readBigUInt64LE(table + index * 8)),
    );
  add(0, bytes.readUInt32LE(12));
  const l1 = Number(bytes.readBigUInt64LE(40));
  add(l1, tableClusters);
  for (const l2 of entries(l1).filter((entry) => entry !== 0)) {
    add(l2, tableClusters);
    for (const entry of entries(l2).filter((offset) => offset > 1)) add(entry, 1);
  }
  return joined(
    [...clusters].sort((a, b) => a - b),
    clusterSize,
  );
}

/** @param clusters in ascending order */
function joined(clusters: readonly number[], clusterSize: number): Range[] {
  const ranges: { start: number; end: number }[] = [];
  for (const cluster of clusters) {
    const start = cluster * clusterSize;
    const last = ranges.at(-1);
    if (last?.end === start) last.end += clusterSize;
    else ranges.push({ start, end: start + clusterSize });
  }
  return ranges;
}
