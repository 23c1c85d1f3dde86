/** QED checks of images that are made to keep them busy, and repairs that the host does not let end. */

import { truncateSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { checkQed } from "../../../../src/formats/qed/check/analysis.ts";
import { repairQed } from "../../../../src/formats/qed/check/repair.ts";
import { UsedClusters } from "../../../../src/formats/qed/check/used-clusters.ts";
import { LocalFile } from "../../../../src/storage/local-file.ts";
import { buildQed, QED_FEATURE_NEED_CHECK, type QedImage } from "../../../support/qed-builder.ts";
import { Random } from "../../../support/random.ts";
import { SparseFile } from "../../../support/recording-sparse-file.ts";
import {
  type FaultHook,
  type RecordingLog,
  RecordingStorage,
} from "../../../support/recording-storage.ts";
import { makeScratch } from "../../../support/scratch.ts";
import { MemoryStorage } from "../../memory-storage.ts";

const CLUSTER = 4096;

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("qed-check");
});

afterAll(() => rm(directory, { recursive: true, force: true }));

function smallImage(features = 0): QedImage {
  const data = { kind: "data", bytes: Buffer.from("data") } as const;
  return buildQed({
    clusterSize: CLUSTER,
    tableClusters: 2,
    virtualSize: 2 ** 24,
    features,
    clusters: { 0: data, 1: { kind: "zero" }, 2: data, 1024: data },
  });
}

function recording(
  bytes: Buffer,
  faultOf?: FaultHook,
): { storage: RecordingStorage; log: RecordingLog } {
  const content = SparseFile.empty();
  content.write(0, bytes);
  const log: RecordingLog = { operations: [] };
  return { storage: new RecordingStorage("disk.qed", content, log, 0, faultOf), log };
}

const silent = (): void => undefined;

describe("UsedClusters", () => {
  it("marks as a set does, across the borders of chunks", () => {
    const random = new Random("used clusters");
    const used = new UsedClusters();
    const set = new Set<number>();
    for (let step = 0; step < 20_000; step++) {
      const near = random.pick([0, 2 ** 20, 2 ** 31 - 300, 5 * 2 ** 20]);
      const cluster = near + random.below(200);
      expect(used.mark(cluster)).toBe(!set.has(cluster));
      set.add(cluster);
    }
    expect(used.count).toBe(set.size);
    expect(used.end).toBe(Math.max(...set) + 1);
  });
});

describe("a check of QED", () => {
  it("refuses files of more clusters than it can count, in one line", () => {
    const path = smallImage().write(join(directory, "huge.qed"));
    const checked = (clusters: number) => {
      truncateSync(path, clusters * CLUSTER);
      const file = LocalFile.open(path, "read-only");
      try {
        return checkQed(file, silent);
      } finally {
        file.close();
      }
    };
    expect(checked(2 ** 31 - 1)).toMatchObject({ leaks: 2 ** 31 - 1 - 10, corruptions: 0 });
    expect(() => checked(2 ** 31)).toThrow(
      /huge\.qed: its file has 2147483648 clusters, and a check can count no more than 2147483647$/,
    );
  });

  it("reads a table once, however often it is named", () => {
    const image = smallImage();
    const l2 = image.region("l2 0");
    for (let index = 2; index < 1024; index++) image.setL1(index, l2.offset);
    const storage = new MemoryStorage("disk.qed", image.bytes);
    const result = checkQed(storage, silent);
    expect(result).toMatchObject({ corruptions: 2 * 1022, leaks: 0, allocatedClusters: 3 });
    const reads = storage.reads.filter(({ offset }) => offset === l2.offset);
    expect(reads).toHaveLength(1);
  });

  it("skips holes: tables of terabytes that nobody has written", () => {
    const tables = 64;
    const image = buildQed({ clusterSize: 2 ** 26, tableClusters: 16, virtualSize: 2 ** 40 });
    const head = image.bytes.subarray(0, 2 ** 26 + tables * 8);
    const path = join(directory, "holes.qed");
    const content = SparseFile.empty();
    content.write(0, head.subarray(0, 64));
    const entries = Buffer.alloc(tables * 8);
    for (let index = 0; index < tables; index++) {
      entries.writeBigUInt64LE(BigInt((17 + index * 16) * 2 ** 26), index * 8);
    }
    content.write(2 ** 26, entries);
    content.setLength((17 + tables * 16) * 2 ** 26);
    content.save(path);
    const file = LocalFile.open(path, "read-only");
    try {
      expect(checkQed(file, silent)).toMatchObject({ leaks: 0, corruptions: 0 });
    } finally {
      file.close();
    }
  });

  it("describes no more findings than somebody reads", () => {
    const image = smallImage();
    for (let index = 0; index < 1000; index++) image.setL2(index, 3);
    const lines: string[] = [];
    const result = checkQed(new MemoryStorage("disk.qed", image.bytes), (line) => lines.push(line));
    expect(result.corruptions).toBe(1000);
    expect(lines).toHaveLength(101);
    expect(lines[0]).toMatch(
      /^L2 entry at 0x3000: 0x3 is not the offset of a cluster within 0x1000\.\.0xa000$/,
    );
    // One of them is that two clusters of data are leaked now.
    expect(lines.at(-1)).toBe("901 more findings are not shown");
  });
});

describe("a repair of QED", () => {
  it("writes nothing to an image that is as it should be", () => {
    const { storage, log } = recording(smallImage().bytes);
    expect(repairQed(storage, "all", silent)).toMatchObject({ leaksFixed: 0, corruptionsFixed: 0 });
    expect(log.operations).toEqual([]);
  });

  it("clears the need-check bit with one write, after a sync", () => {
    const { storage, log } = recording(smallImage(QED_FEATURE_NEED_CHECK).bytes);
    repairQed(storage, "leaks", silent);
    expect(log.operations.map(({ kind }) => kind)).toEqual(["sync", "write", "sync"]);
    expect(storage.content.bytesAt(16, 1)[0]).toBe(0);
  });

  it("leaves entries that cannot be right, and what they may have lost, to -r all", () => {
    const image = smallImage(QED_FEATURE_NEED_CHECK).setL2(0, 0x123);
    const bytes = Buffer.concat([image.bytes, Buffer.alloc(3 * CLUSTER)]);
    const { storage, log } = recording(bytes);
    const lines: string[] = [];
    const { result } = repairQed(storage, "leaks", (line) => lines.push(line));
    expect(result).toMatchObject({ corruptions: 1, leaks: 4 });
    expect(log.operations).toEqual([]);
    expect(lines.slice(-2)).toEqual([
      "damaged entries stay, 1 of them: -r all repairs them",
      "4 leaked clusters stay: they may be what damaged entries have lost",
    ]);
    expect(repairQed(storage, "all", silent)).toMatchObject({
      leaksFixed: 3,
      corruptionsFixed: 1,
      result: { corruptions: 0, leaks: 1 },
    });
  });

  it("keeps the leaks of a device, which cannot be cut", () => {
    const bytes = Buffer.concat([smallImage().bytes, Buffer.alloc(3 * CLUSTER)]);
    const { storage, log } = recording(bytes);
    Object.defineProperty(storage, "resizable", { value: false });
    const lines: string[] = [];
    const { result, leaksFixed } = repairQed(storage, "all", (line) => lines.push(line));
    expect(result.leaks).toBe(3);
    expect(leaksFixed).toBe(0);
    expect(log.operations).toEqual([]);
    expect(lines.at(-1)).toMatch(/^3 leaked clusters stay: /);
  });

  it.each([0, 1, 2, 3, 4, 5])("keeps the need-check bit if call %i fails", (failing) => {
    const image = smallImage(QED_FEATURE_NEED_CHECK).setL2(0, 0x123);
    const bytes = Buffer.concat([image.bytes, Buffer.alloc(3 * CLUSTER)]);
    let calls = 0;
    const { storage } = recording(bytes, () =>
      calls++ === failing ? { code: "EIO", written: 0 } : undefined,
    );
    expect(() => repairQed(storage, "all", silent)).toThrow(/EIO/);
    expect((storage.content.bytesAt(16, 1)[0] ?? 0) & QED_FEATURE_NEED_CHECK).not.toBe(0);
    expect(repairQed(storage, "all", silent).result).toMatchObject({ corruptions: 0, leaks: 1 });
    expect(storage.content.bytesAt(16, 1)[0]).toBe(0);
  });
});
