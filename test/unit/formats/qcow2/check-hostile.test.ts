/** Images made to keep a check busy or to exhaust its memory: few bytes that claim a lot. */

import { closeSync, openSync, rmSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CheckResult } from "../../../../src/formats/check-result.ts";
import { checkQcow2 } from "../../../../src/formats/qcow2/check/analysis.ts";
import { repairQcow2 } from "../../../../src/formats/qcow2/check/repair.ts";
import { LocalFile, type OpenMode } from "../../../../src/storage/local-file.ts";
import {
  bitmapsExtension,
  EXTENSION_END,
  encodeExtension,
  QCOW2_HEADER_FIELDS,
  QCOW2_MAGIC,
  type Qcow2HeaderFields,
  writeBe,
} from "../../../support/qcow2-header-builder.ts";
import { byScale, LONG } from "../../../support/scale.ts";
import { makeScratch } from "../../../support/scratch.ts";

const COPIED = 1n << 63n;
/** The most that an L1 table may have: four million. */
const L1_ENTRIES = byScale(2 ** 18, 2 ** 22);
const SNAPSHOTS = byScale(4096, 65536);

/** A sparse image of zeros, on disk: only what a test writes into it is there. */
class Hostile {
  readonly path: string;

  constructor(clusterBits: number, length: number, fields: Qcow2HeaderFields) {
    this.path = join(directory, "disk.qcow2");
    rmSync(this.path, { force: true });
    writeFileSync(this.path, "");
    truncateSync(this.path, length);
    const header = Buffer.alloc(112);
    const values: Qcow2HeaderFields = {
      magic: QCOW2_MAGIC,
      version: 3,
      cluster_bits: clusterBits,
      size: 0,
      refcount_table_offset: 2 ** clusterBits,
      refcount_table_clusters: 1,
      refcount_order: 4,
      header_length: 112,
      ...fields,
    };
    for (const [name, { offset, size }] of Object.entries(QCOW2_HEADER_FIELDS)) {
      const value = Object.entries(values).find(([field]) => field === name)?.[1];
      if (value !== undefined) writeBe(header, offset, size, value);
    }
    this.write(0, header);
  }

  write(offset: number, bytes: Buffer): this {
    const fd = openSync(this.path, "r+");
    writeSync(fd, bytes, 0, bytes.length, offset);
    closeSync(fd);
    return this;
  }

  /** Fill `count` table entries from `offset` on. */
  words(offset: number, count: number, wordOf: (index: number) => bigint): this {
    const bytes = Buffer.alloc(count * 8);
    for (let index = 0; index < count; index++) bytes.writeBigUInt64BE(wordOf(index), index * 8);
    return this.write(offset, bytes);
  }

  check(): CheckResult {
    return this.#open("read-only", (file) => checkQcow2(file, () => undefined));
  }

  repair(): CheckResult {
    return this.#open("read-write", (file) => repairQcow2(file, "all", () => undefined).result);
  }

  #open<T>(mode: OpenMode, use: (file: LocalFile) => T): T {
    const file = LocalFile.open(this.path, mode);
    try {
      return use(file);
    } finally {
      file.close();
    }
  }
}

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("check-hostile");
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const TiB = 2 ** 40;

describe("check of hostile images", { timeout: 120_000 }, () => {
  it("reads an L2 table once that all L1 entries name", () => {
    const image = new Hostile(16, 64 * MiB, { l1_size: L1_ENTRIES, l1_table_offset: 2 * MiB })
      .words(2 * MiB, L1_ENTRIES, () => COPIED | BigInt(40 * MiB))
      .words(40 * MiB, 8192, () => COPIED | BigInt(48 * MiB));
    const result = image.check();
    // The L2 table and the data cluster have more references than 16 bits can say.
    const overflows = L1_ENTRIES - 65535 + (L1_ENTRIES * 8192 - 65535);
    expect(result.corruptions).toBeGreaterThan(overflows);
    expect(result.allocatedClusters).toBe(L1_ENTRIES * 8192);
  });

  it("follows L2 tables that are holes", () => {
    const length = 2 * TiB;
    const image = new Hostile(16, length, {
      l1_size: L1_ENTRIES,
      l1_table_offset: 2 * MiB,
    }).words(2 * MiB, L1_ENTRIES, (index) => BigInt(GiB + index * 65536));
    expect(image.check().corruptions).toBeGreaterThanOrEqual(L1_ENTRIES);
  });

  it("reads overlapping L1 tables of many snapshots once", () => {
    const image = new Hostile(9, 128 * MiB, {
      nb_snapshots: SNAPSHOTS,
      snapshots_offset: 8 * MiB,
    });
    const table = Buffer.alloc(SNAPSHOTS * 56);
    for (let index = 0; index < SNAPSHOTS; index++) {
      table.writeBigUInt64BE(BigInt(16 * MiB + index * 512), index * 56);
      table.writeUInt32BE(L1_ENTRIES, index * 56 + 8);
      table.writeUInt32BE(16, index * 56 + 36);
    }
    image.write(8 * MiB, table);
    image.words(16 * MiB, 8 * MiB, () => BigInt(100 * MiB));
    expect(image.check().corruptions).toBeGreaterThan(L1_ENTRIES * SNAPSHOTS - 65536);
  });

  it("counts a refcount block that all entries of the table name", () => {
    const clusters = byScale(16, 128);
    const image = new Hostile(16, 32 * MiB, { refcount_table_clusters: clusters })
      .words(65536, clusters * 8192, () => BigInt(16 * MiB))
      .words(16 * MiB, 8192, () => 0x0001_0001_0001_0001n);
    expect(image.check().corruptions).toBeGreaterThanOrEqual(clusters * 8192 - 1);
    expect(image.repair()).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
  });

  it("follows overlapping tables of 65535 bitmaps", () => {
    const bitmaps = 65535;
    const directorySize = bitmaps * 32;
    const image = new Hostile(16, 4 * GiB, { autoclear_features: 1 });
    const extension = { count: bitmaps, directorySize, directoryOffset: MiB };
    const extensions = [bitmapsExtension(extension), { type: EXTENSION_END, data: "" }];
    image.write(112, Buffer.concat(extensions.map(encodeExtension)));
    const directory = Buffer.alloc(directorySize);
    for (let index = 0; index < bitmaps; index++) {
      const at = index * 32;
      directory.writeBigUInt64BE(BigInt(GiB + (index % 1000) * 65536), at);
      directory.writeUInt32BE(2 ** 27, at + 8);
      // In use: no table is too long then.
      directory.writeUInt32BE(1, at + 12);
      directory.writeUInt8(1, at + 16);
      directory.writeUInt8(16, at + 17);
      directory.writeUInt16BE(4, at + 18);
      directory.write(index.toString(16).padStart(4, "0"), at + 24);
    }
    image.write(MiB, directory);
    image.words(GiB + 64 * MiB, 8192, () => BigInt(3 * GiB));
    expect(image.check().corruptions).toBeGreaterThan(bitmaps * 8192 - 65535);
  });

  it("refuses more clusters than QEMU counts, and checks one less", () => {
    const clusters = 2 ** 31;
    expect(() => new Hostile(9, clusters * 512, {}).check()).toThrow(
      /disk\.qcow2: its file has 2147483648 clusters, and a check can count no more than 2147483647$/,
    );
    const image = new Hostile(9, (clusters - 1) * 512, {});
    expect(image.check()).toMatchObject({ leaks: 0, checkErrors: 0 });
  });

  it("survives tables that name themselves and each other", () => {
    const image = new Hostile(9, MiB, {
      l1_size: 64,
      l1_table_offset: 2048,
      nb_snapshots: 1,
      snapshots_offset: 2048,
      refcount_table_offset: 2048,
    }).words(2048, 64, (index) => BigInt(index % 2 === 0 ? 2048 : 2560));
    expect(() => image.check()).toThrow(/bytes of extra data/);
    expect(image.repair().checkErrors).toBe(0);
    expect(image.check().checkErrors).toBe(0);
  });

  it("refuses thousands of L2 tables at impossible offsets", () => {
    const image = new Hostile(21, 64 * MiB, { l1_size: 4096, l1_table_offset: 2 ** 21 })
      .words(2 ** 21, 4096, (index) => BigInt(8 * MiB + index * 512))
      .words(8 * MiB, 2 ** 21, () => 1n);
    expect(() => image.check()).toThrow(
      /disk\.qcow2: more than 1024 L2 tables are not cluster aligned: too damaged to be checked$/,
    );
  });

  it.each([0xffff_ffff, 1025])("refuses %i bytes of a snapshot's extra data", (extraSize) => {
    const image = new Hostile(16, MiB, { nb_snapshots: 1, snapshots_offset: 2 ** 17 });
    const entry = Buffer.alloc(40);
    entry.writeUInt32BE(extraSize, 36);
    image.write(2 ** 17, entry);
    expect(() => image.check()).toThrow(/disk\.qcow2: .*; check -r all repairs that$/);
    expect(image.repair().corruptions).toBe(0);
  });

  it.each(LONG ? [4200] : [])(
    "refuses references in %i tables that are scattered over a terabyte",
    (tables) => {
      const image = new Hostile(9, TiB - 512, { l1_size: tables, l1_table_offset: MiB }).words(
        MiB,
        tables,
        (index) => BigInt(2 * MiB + index * 512),
      );
      for (let table = 0; table < tables; table++) {
        const first = table * 64;
        image.words(2 * MiB + table * 512, 64, (index) => BigInt((first + index + 4) * 2 ** 21));
      }
      expect(() => image.check()).toThrow(/takes more than 1073741824 bytes of memory$/);
    },
  );
});
