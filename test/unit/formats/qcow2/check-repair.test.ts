/** What a repair writes, and in which order: on images laid out by hand, with every write recorded. */

import { describe, expect, it } from "vitest";
import { readCheckLayout } from "../../../../src/formats/qcow2/check/check-layout.ts";
import {
  reclaimLeaks,
  repairQcow2,
  repairRefcounts,
} from "../../../../src/formats/qcow2/check/repair.ts";
import { type Qcow2Layout, readQcow2Layout } from "../../../../src/formats/qcow2/layout.ts";
import { buildQcow2, type Qcow2Image, type Qcow2Options } from "../../../support/qcow2-builder.ts";
import { SparseFile } from "../../../support/recording-sparse-file.ts";
import {
  type FaultHook,
  type LoggedOperation,
  RecordingStorage,
} from "../../../support/recording-storage.ts";

const CLUSTER = 65536;
const DIRTY = 1n;
const CORRUPT = 2n;
const INCOMPATIBLE_AT = 72;
const AUTOCLEAR_AT = 88;

const DATA = { kind: "data", bytes: Buffer.alloc(CLUSTER, 5) } as const;
const SILENT = (): void => undefined;

interface Open {
  readonly image: Qcow2Image;
  readonly storage: RecordingStorage;
  readonly operations: LoggedOperation[];
  /** From now on, these calls fail. */
  failWhere(faultOf: FaultHook): void;
}

const NEVER: FaultHook = () => undefined;
const ENOSPC = { code: "ENOSPC", written: 0 } as const;

function open(options: Qcow2Options, damage: (image: Qcow2Image) => void = SILENT): Open {
  const image = buildQcow2({ clusters: { 0: DATA, 1: DATA }, ...options });
  damage(image);
  const file = SparseFile.empty(image.bytes.length);
  file.write(0, image.bytes);
  const operations: LoggedOperation[] = [];
  let hook = NEVER;
  const storage = new RecordingStorage("disk.qcow2", file, { operations }, 0, (operation) =>
    hook(operation),
  );
  const failWhere = (faultOf: FaultHook): void => {
    hook = faultOf;
  };
  return { image, storage, operations, failWhere };
}

function layoutOf({ storage }: Open): Qcow2Layout {
  return readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: true });
}

/** An image with three leaked clusters of data behind the others. */
function openLeaked(options: Qcow2Options = {}): Open & { readonly leaked: readonly number[] } {
  const first = buildQcow2({ clusters: { 0: DATA, 1: DATA } }).bytes.length / CLUSTER;
  const leaked = [first, first + 1, first + 2];
  const opened = open(options, (image) => {
    for (const cluster of leaked) image.setRefcount(cluster, 1);
  });
  for (const cluster of leaked) {
    opened.storage.content.write(cluster * CLUSTER, Buffer.alloc(CLUSTER, 9));
  }
  return { ...opened, leaked };
}

function u64({ storage }: Open, at: number): bigint {
  return storage.content.bytesAt(at, 8).readBigUInt64BE();
}

describe("repair", () => {
  it("writes nothing to an image that is intact", () => {
    const opened = open({});
    expect(repairQcow2(opened.storage, "all", SILENT)).toMatchObject({
      leaksFixed: 0,
      corruptionsFixed: 0,
      result: { leaks: 0, corruptions: 0, checkErrors: 0 },
    });
    reclaimLeaks(opened.storage, layoutOf(opened));
    expect(opened.operations).toEqual([]);
  });

  it("gives leaked clusters back: punched first, and durably, then free", () => {
    const opened = openLeaked();
    const { leaked, storage, operations } = opened;
    const refcountsAt = opened.image.region("refcount block 0").offset;
    expect(reclaimLeaks(storage, layoutOf(opened))).toMatchObject({ leaks: 0, corruptions: 0 });
    const kinds = operations.map((operation) =>
      operation.kind !== "write"
        ? operation.kind
        : operation.offset < CLUSTER
          ? "header"
          : operation.offset - (operation.offset % CLUSTER) === refcountsAt
            ? "refcounts"
            : "other",
    );
    const order = ["header", "sync", "zero", "sync", "refcounts", "sync", "header", "sync"];
    expect(kinds.filter((kind, index) => kind !== kinds[index - 1])).toEqual(order);
    for (const cluster of leaked) {
      expect(storage.content.bytesAt(cluster * CLUSTER, CLUSTER).every((byte) => byte === 0)).toBe(
        true,
      );
    }
    expect(u64(opened, INCOMPATIBLE_AT)).toBe(0n);
  });

  it("keeps leaked clusters while something is damaged that may refer to them", () => {
    const { storage, operations } = openLeaked({
      clusters: { 0: DATA, 1: DATA, 2: { kind: "entry", entry: 1n << 50n } },
    });
    const { result, leaksFixed } = repairQcow2(storage, "leaks", SILENT);
    expect(result).toMatchObject({ leaks: 3, corruptions: 1 });
    expect(leaksFixed).toBe(0);
    expect(operations).toEqual([]);
  });

  it("frees clusters past the end of the file, unless something refers there", () => {
    const past = 500;
    const opened = open({}, (image) => image.setRefcount(past, 3));
    expect(reclaimLeaks(opened.storage, layoutOf(opened))).toMatchObject({ leaks: 0 });
    const refcountAt = opened.image.region("refcount block 0").offset + past * 2;
    expect(opened.storage.content.bytesAt(refcountAt, 2).readUInt16BE()).toBe(0);

    const cut = open({ clusters: { 0: { kind: "entry", entry: past * CLUSTER } } }, (image) =>
      image.setRefcount(past, 1),
    );
    repairQcow2(cut.storage, "all", SILENT);
    expect(cut.storage.content.bytesAt(refcountAt, 2).readUInt16BE()).toBe(1);
  });

  it("writes new structures where no reference past the end comes to life", () => {
    const end = buildQcow2({ clusters: { 0: DATA, 1: DATA } }).bytes.length / CLUSTER;
    const entries = { 2: { kind: "entry", entry: end * CLUSTER } } as const;
    const opened = open({ clusters: { 0: DATA, 1: DATA, ...entries } }, (image) =>
      image.setRefcountTable(0, 0),
    );
    repairQcow2(opened.storage, "all", SILENT);
    const cluster = opened.storage.content.bytesAt(end * CLUSTER, CLUSTER);
    expect(cluster.every((byte) => byte === 0)).toBe(true);
    expect(opened.storage.currentLength()).toBeGreaterThan((end + 1) * CLUSTER);
  });

  it("clears the dirty bit last, and the corrupt bit with it", () => {
    const opened = open({ incompatible: DIRTY | CORRUPT }, (image) => image.setRefcount(5, 0));
    expect(repairRefcounts(opened.storage, layoutOf(opened))).toMatchObject({ corruptions: 0 });
    expect(u64(opened, INCOMPATIBLE_AT)).toBe(0n);
    const last = opened.operations.findLastIndex(({ kind }) => kind === "write");
    expect(opened.operations[last]).toMatchObject({ offset: INCOMPATIBLE_AT });
    expect(opened.operations[last + 1]).toMatchObject({ kind: "sync" });
  });

  it("says what it cannot repair, and leaves the image dirty", () => {
    const opened = open(
      { incompatible: DIRTY, clusters: { 0: { kind: "entry", entry: 0x1_0000_0200n } } },
      (image) => image.setRefcount(1, 0),
    );
    expect(() => repairRefcounts(opened.storage, layoutOf(opened))).toThrow(
      /^disk\.qcow2: is damaged beyond what a repair can do \(2 errors are left; check tells more\)$/,
    );
    expect(u64(opened, INCOMPATIBLE_AT)).toBe(DIRTY);
    expect(opened.image.bytes.length).toBe(opened.storage.currentLength());
  });

  it("leaves an image that was not dirty as undirty, whatever is left", () => {
    const opened = open({ clusters: { 0: { kind: "entry", entry: 0x1_0000_0200n } } }, (image) =>
      image.setRefcount(1, 0),
    );
    expect(repairQcow2(opened.storage, "all", SILENT).result.corruptions).toBe(2);
    expect(u64(opened, INCOMPATIBLE_AT)).toBe(0n);
  });

  it("clears unknown autoclear bits before it changes anything, and keeps those it maintains", () => {
    const opened = openLeaked({ header: { autoclear_features: 0x101n } });
    reclaimLeaks(opened.storage, layoutOf(opened));
    expect(opened.operations[0]).toMatchObject({ kind: "write", offset: AUTOCLEAR_AT });
    expect(u64(opened, AUTOCLEAR_AT)).toBe(1n);
  });

  it.each([2, 3, 4, 5, 6, 7, 8])("survives a full disk at write %i", (failing) => {
    const opened = open({}, (image) => {
      image.setRefcountTable(0, 0);
      image.setL2(0, image.getL2(0) & ~(1n << 63n));
    });
    let count = 0;
    opened.failWhere(() => {
      count++;
      return count >= failing ? ENOSPC : undefined;
    });
    expect(() => repairQcow2(opened.storage, "all", SILENT)).toThrow(/ENOSPC/);
    opened.failWhere(NEVER);
    expect(repairQcow2(opened.storage, "all", SILENT).result).toMatchObject({ corruptions: 0 });
    expect(u64(opened, INCOMPATIBLE_AT)).toBe(0n);
  });

  it("restores the header when the disk has room for that alone", () => {
    const opened = open({}, (image) => image.setRefcountTable(0, 0));
    opened.failWhere((operation) =>
      operation.kind === "write" && operation.offset >= CLUSTER ? ENOSPC : undefined,
    );
    expect(() => repairQcow2(opened.storage, "all", SILENT)).toThrow(/ENOSPC/);
    expect(u64(opened, INCOMPATIBLE_AT)).toBe(0n);
  });
});

/** A device: what is there is all the room that there is. */
class Device extends RecordingStorage {
  override readonly resizable = false as boolean as true;

  override writeAt(...args: Parameters<RecordingStorage["writeAt"]>): void {
    const [, , length, offset] = args;
    if (offset + length > this.content.length) throw new RangeError("past the end of the device");
    super.writeAt(...args);
  }
}

describe("repair on a device", () => {
  function device(clusters: number, damage: (image: Qcow2Image) => void): Device {
    const image = buildQcow2({ clusters: { 0: DATA } });
    damage(image);
    const file = SparseFile.empty(image.bytes.length + clusters * CLUSTER);
    file.write(0, image.bytes);
    return new Device("disk.qcow2", file, { operations: [] }, 0);
  }

  it("rebuilds refcounts where there is room", () => {
    const storage = device(2, (image) => image.setRefcountTable(0, 0));
    expect(repairQcow2(storage, "all", SILENT).result).toMatchObject({ corruptions: 0, leaks: 0 });
    expect(readCheckLayout(storage).header.refcount_table_clusters).toBe(1);
  });

  it("takes what no block speaks of although references are lost, for want of other room", () => {
    const storage = device(2, (image) => image.setRefcountTable(0, 0).setL2(0, 2 ** 40));
    expect(repairQcow2(storage, "all", SILENT).result).toMatchObject({ corruptions: 1, leaks: 0 });
    expect(readCheckLayout(storage).header.refcount_table_clusters).toBe(1);
  });

  it("takes leaked clusters where there is no other room", () => {
    const storage = device(0, (image) => {
      // Nothing refers to the data any more; and the block cannot be read.
      image.setL2(0, 0).setL1(0, 0);
      image.setRefcountTable(0, image.region("refcount block 0").offset + 512);
    });
    expect(repairQcow2(storage, "all", SILENT).result).toMatchObject({ corruptions: 0, leaks: 0 });
  });

  it("refuses where there is no room at all", () => {
    const storage = device(0, (image) => image.setRefcountTable(0, image.region("l1").offset));
    expect(() => repairQcow2(storage, "all", SILENT)).toThrow(
      /^disk\.qcow2: no room for new refcount structures$/,
    );
  });
});
