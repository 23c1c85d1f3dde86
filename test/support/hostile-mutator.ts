/** Damages images at random where it hurts: in headers, tables and compressed streams, as a seed decides. */

import { readBe } from "./qcow2-header-builder.ts";
import type { Random } from "./random.ts";

interface Region {
  readonly name: string;
  readonly offset: number;
  readonly length: number;
}

/** A damaged copy, and what was done to it. */
export interface Mutant {
  readonly bytes: Buffer;
  readonly changes: readonly string[];
}

/** 64-bit values that have broken image readers before. */
const WORDS = [
  0n,
  1n,
  2n,
  511n,
  512n,
  0x1000n,
  0x10000n,
  0x1_0000_0000n,
  1n << 40n,
  (1n << 53n) - 1n,
  1n << 53n,
  1n << 55n,
  (1n << 56n) - 512n,
  1n << 62n,
  (1n << 62n) | 0x10000n,
  (1n << 63n) - 1n,
  1n << 63n,
  (1n << 63n) | 0x10000n,
  (1n << 64n) - 512n,
  (1n << 64n) - 1n,
] as const;

/** Where the metadata of a good image is; found through its own header and tables. */
export function metadataRegions(bytes: Buffer): Region[] {
  return bytes.toString("latin1", 0, 3) === "QED" ? qedRegions(bytes) : qcow2Regions(bytes);
}

function qcow2Regions(bytes: Buffer): Region[] {
  const clusterSize = 2 ** bytes.readUInt32BE(20);
  const version = bytes.readUInt32BE(4);
  const l1Entries = bytes.readUInt32BE(36);
  const l1 = Number(readBe(bytes, 40, 8));
  const regions: Region[] = [
    { name: "header", offset: 0, length: version === 2 ? 72 : 112 },
    { name: "extensions", offset: version === 2 ? 72 : 112, length: 200 },
    { name: "l1", offset: l1, length: l1Entries * 8 },
    { name: "refcount table", offset: Number(readBe(bytes, 48, 8)), length: 16 },
  ];
  if (bytes.readUInt32BE(60) > 0) {
    regions.push({ name: "snapshot table", offset: Number(readBe(bytes, 64, 8)), length: 80 });
  }
  for (let index = 0; index < l1Entries; index++) {
    const offset = Number(readBe(bytes, l1 + index * 8, 8) & 0x00ff_ffff_ffff_fe00n);
    if (offset !== 0) {
      regions.push(...l2Regions(bytes, { offset, length: Math.min(clusterSize, 512) }));
    }
  }
  return regions;
}

/** The used part of an L2 table, and the compressed streams it leads to. */
function l2Regions(
  bytes: Buffer,
  table: { readonly offset: number; readonly length: number },
): Region[] {
  const regions: Region[] = [{ name: "l2", ...table }];
  for (let at = table.offset; at < table.offset + table.length; at += 8) {
    const entry = readBe(bytes, at, 8);
    const offset = Number(entry & 0x0000_ffff_ffff_ffffn);
    if ((entry & (1n << 62n)) !== 0n && offset < bytes.length) {
      regions.push({ name: "compressed", offset, length: Math.min(64, bytes.length - offset) });
    }
  }
  return regions;
}

function qedRegions(bytes: Buffer): Region[] {
  const tableBytes = Math.min(512, bytes.readUInt32LE(4) * bytes.readUInt32LE(8));
  const l1 = Number(bytes.readBigUInt64LE(40));
  const regions: Region[] = [
    { name: "header", offset: 0, length: 64 },
    { name: "backing file name", offset: 64, length: 32 },
    { name: "l1", offset: l1, length: 64 },
  ];
  const l2 = Number(bytes.readBigUInt64LE(l1));
  return l2 === 0 ? regions : [...regions, { name: "l2", offset: l2, length: tableBytes }];
}

/** One to four changes, mostly of metadata; now and then the file is cut. */
export function mutate(bytes: Buffer, random: Random): Mutant {
  const regions = metadataRegions(bytes).filter(
    (region) => region.offset + region.length <= bytes.length,
  );
  const copy = Buffer.from(bytes);
  const changes: string[] = [];
  for (let count = random.between(1, 4); count > 0; count--) {
    const region = regions[random.below(regions.length)];
    if (region !== undefined && region.length > 0) {
      changes.push(change(copy, region, random));
    }
  }
  if (random.below(10) === 0) {
    const length = random.below(copy.length);
    changes.push(`cut to ${length}`);
    return { bytes: copy.subarray(0, length), changes };
  }
  return { bytes: copy, changes };
}

function change(bytes: Buffer, region: Region, random: Random): string {
  const at = region.offset + random.below(region.length);
  const aligned = at - (at % 8);
  const where = `${region.name} at 0x${at.toString(16)}`;
  switch (random.below(5)) {
    case 0: {
      const bit = random.below(8);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << bit);
      return `${where}: bit ${bit} flipped`;
    }
    case 1: {
      const value = random.below(256);
      bytes[at] = value;
      return `${where}: byte ${value}`;
    }
    case 2: {
      const word = random.pick(WORDS);
      if (random.below(2) === 0) {
        bytes.writeBigUInt64BE(word, aligned);
      } else {
        bytes.writeBigUInt64LE(word, aligned);
      }
      return `${where}: word 0x${word.toString(16)}`;
    }
    case 3: {
      const word = Number(random.pick(WORDS) & 0xffff_ffffn);
      bytes.writeUInt32BE(word, at - (at % 4));
      return `${where}: half word 0x${word.toString(16)}`;
    }
    default: {
      const from = region.offset + random.below(Math.max(1, region.length - 8));
      bytes.copyWithin(aligned, from, from + 8);
      return `${where}: 8 bytes from 0x${from.toString(16)}`;
    }
  }
}
