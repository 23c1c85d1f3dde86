/** Where clusters of QED images come from: how many are reserved, in which order, and what is left in the end. */

import { describe, expect, it } from "vitest";
import { StorageError } from "../../../../../src/errors.ts";
import { readQedLayout } from "../../../../../src/formats/qed/layout.ts";
import { prepareQedWriting } from "../../../../../src/formats/qed/writer/attach.ts";
import { ClusterAllocator } from "../../../../../src/formats/qed/writer/cluster-allocator.ts";
import { HeaderWriter } from "../../../../../src/formats/qed/writer/header-writer.ts";
import { NUMBER, SharedState } from "../../../../../src/formats/qed/writer/shared-state.ts";
import { AccessLock, createAccessLock } from "../../../../../src/threads/access-lock.ts";
import { buildQed, type QedImage, type QedOptions } from "../../../../support/qed-builder.ts";
import { SparseFile } from "../../../../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../../../../support/recording-storage.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;

class Sample {
  readonly content = SparseFile.empty();
  readonly log: RecordingLog = { operations: [] };
  readonly lock: AccessLock;
  readonly state: SharedState;
  readonly allocator: ClusterAllocator;
  /** Clusters of the file at first. */
  readonly clusters: number;
  /** How often maintenance was asked for. */
  requests = 0;
  isFull = false;

  constructor(options: QedOptions, change: (image: QedImage) => unknown = () => undefined) {
    const built = buildQed(options);
    change(built);
    this.content.write(0, built.bytes);
    this.clusters = built.bytes.length / built.clusterSize;
    const storage = new RecordingStorage("disk.qed", this.content, this.log, 0, ({ kind }) =>
      this.isFull && kind === "length" ? { code: "ENOSPC", written: 0 } : undefined,
    );
    const layout = readQedLayout(storage, MIB);
    this.state = new SharedState(prepareQedWriting(layout, storage).state);
    this.lock = new AccessLock(createAccessLock(1), 0);
    this.allocator = new ClusterAllocator({
      layout,
      storage,
      state: this.state,
      lock: this.lock,
      headerWriter: new HeaderWriter(storage),
      requestMaintenance: () => {
        this.requests++;
      },
    });
  }

  /** Changes since the last call, in words. */
  changes(): string[] {
    const operations = this.log.operations.splice(0);
    return operations.map((operation) =>
      operation.kind === "write" ? `write ${operation.offset}` : operation.kind,
    );
  }
}

describe("a reservation", () => {
  it("comes after the need-check bit, each of them durable", () => {
    const sample = new Sample({ virtualSize: GIB });
    const { generation } = sample.lock;
    expect(sample.allocator.take(1)).toBe(0);
    sample.allocator.reserve();
    expect(sample.changes()).toEqual(["write 16", "sync", "length", "sync"]);
    // Readers must know how long the file is before anything refers to what is new.
    expect(sample.lock.generation).not.toBe(generation);
    expect(sample.state.get(NUMBER.fileClusters) * 65536).toBe(sample.content.length);
    sample.allocator.reserve();
    expect(sample.changes()).toEqual([]);
  });

  it("has 16 MiB at first, then as much as was taken, up to 1 GiB", () => {
    const sample = new Sample({ virtualSize: 1024 * GIB });
    const { allocator, content, state } = sample;
    const sizes: number[] = [];
    let taken = 0;
    while (sizes.length < 14) {
      const before = content.length;
      if (allocator.take(1) > 0) {
        expect(allocator.taken).toBe(sample.clusters + taken);
        taken++;
      } else allocator.reserve();
      if (content.length > before) sizes.push(content.length - before);
    }
    expect(sizes[0]).toBe(16 * MIB);
    expect(sizes[1]).toBe(16 * MIB);
    expect(sizes[2]).toBe(32 * MIB);
    expect(Math.max(...sizes)).toBe(GIB);
    expect([...sizes].sort((a, b) => a - b)).toEqual(sizes);
    expect(state.get(NUMBER.taken)).toBe(taken);
    // What is taken is zeros: never written.
    expect(content.allocated).toBeLessThan(MIB);
  });

  it("is prepared when less than half is left, and asked for once", () => {
    const sample = new Sample({ virtualSize: GIB });
    const { allocator } = sample;
    allocator.reserve();
    expect(allocator.take(128)).toBe(128);
    expect(sample.requests).toBe(0);
    expect(allocator.take(1)).toBe(1);
    expect(allocator.take(10)).toBe(10);
    expect(sample.requests).toBe(1);
    sample.changes();
    allocator.maintain();
    expect(sample.changes()).toEqual(["length", "sync"]);
    // As much as before, adjacent to what was left.
    expect(allocator.take(1000)).toBe(256 - 139 + 256);
    expect(sample.requests).toBe(2);
  });

  it.each([
    // Data and a table of the whole disk.
    { what: "a small disk", size: 3 * MIB, clusters: 48 + 4 },
    { what: "a tiny disk", size: 512, clusters: 16 },
    { what: "no disk at all", size: 0, clusters: 16 },
  ])("is no more than $what can need, or a little", ({ size, clusters }) => {
    const sample = new Sample({ virtualSize: size });
    sample.allocator.reserve();
    expect(sample.content.length).toBe((sample.clusters + clusters) * 65536);
  });

  it("leaves out what a disk has already", () => {
    const data = { kind: "data", bytes: Buffer.alloc(1) } as const;
    const clusters = Object.fromEntries(Array.from({ length: 20 }, (_, index) => [index, data]));
    const sample = new Sample({ virtualSize: 3 * MIB, clusters });
    sample.allocator.reserve();
    expect(sample.content.length).toBe((sample.clusters + 48 - 20 + 4) * 65536);
  });

  it("has room for a table and a cluster, however large they are", () => {
    const sample = new Sample({
      clusterSize: 4 * MIB,
      tableClusters: 16,
      virtualSize: 64 * 1024 * GIB,
    });
    const { allocator } = sample;
    allocator.reserve();
    expect(allocator.takeTable()).toBe(true);
    expect(allocator.taken).toBe(sample.clusters);
    expect(allocator.take(5)).toBe(1);
    expect(allocator.taken).toBe(sample.clusters + 16);
  });

  it("is made for a table where only a part of one is left", () => {
    const sample = new Sample({ virtualSize: GIB });
    const { allocator } = sample;
    allocator.reserve();
    allocator.take(253);
    expect(allocator.takeTable()).toBe(false);
    expect(allocator.take(1)).toBe(1);
    allocator.reserve();
    expect(allocator.takeTable()).toBe(true);
    expect(allocator.taken).toBe(sample.clusters + 254);
  });

  it("that the host refuses leaves what there was, and can be made later", () => {
    const sample = new Sample({ virtualSize: GIB });
    const { allocator } = sample;
    sample.isFull = true;
    expect(() => allocator.reserve()).toThrow(StorageError);
    expect(allocator.take(1)).toBe(0);
    sample.isFull = false;
    allocator.reserve();
    expect(allocator.take(1)).toBe(1);
    expect(allocator.taken).toBe(sample.clusters);
  });
});

describe("clusters that an earlier writer has leaked", () => {
  const data = { kind: "data", bytes: Buffer.alloc(65536, 0xee) } as const;

  function leakySample(): Sample {
    const clusters = Object.fromEntries([0, 1, 2, 3, 4, 5].map((index) => [index, data]));
    return new Sample({ virtualSize: GIB, clusters }, (image) =>
      image.setL2(1, 0).setL2(2, 0).setL2(4, 0),
    );
  }

  it("become zeros with the first reservation, durably, and are taken first", () => {
    const sample = leakySample();
    const { allocator, content } = sample;
    // The header, and two tables of four clusters.
    const first = 9;
    expect(content.bytesAt((first + 1) * 65536, 1)[0]).toBe(0xee);
    allocator.reserve();
    expect(sample.changes()).toEqual(["write 16", "sync", "length", "zero", "zero", "sync"]);
    expect(allocator.take(1)).toBe(1);
    expect(allocator.taken).toBe(first + 4);
    expect(allocator.take(5)).toBe(2);
    expect(allocator.taken).toBe(first + 1);
    for (const cluster of [1, 2, 4]) {
      const bytes = content.bytesAt((first + cluster) * 65536, 65536);
      expect(bytes.every((byte) => byte === 0)).toBe(true);
    }
    expect(allocator.take(5)).toBe(5);
    expect(allocator.taken).toBe(first + 6);
    allocator.maintain();
    expect(sample.changes()).toEqual([]);
  });

  it("are not for tables", () => {
    const { allocator, clusters } = leakySample();
    allocator.reserve();
    expect(allocator.takeTable()).toBe(true);
    expect(allocator.taken).toBe(clusters);
  });
});

describe("the end of a session", () => {
  it("cuts the file behind what was taken", () => {
    const sample = new Sample({ virtualSize: GIB });
    const { allocator, content } = sample;
    allocator.reserve();
    allocator.take(3);
    sample.changes();
    allocator.close();
    expect(sample.changes()).toEqual(["sync", "length", "sync", "write 16", "sync"]);
    expect(content.length).toBe((sample.clusters + 3) * 65536);
    expect(content.bytesAt(16, 1)[0]).toBe(0);
  });

  it("does nothing but wait for the disk where nothing was reserved", () => {
    const sample = new Sample({ virtualSize: GIB });
    sample.allocator.close();
    expect(sample.changes()).toEqual(["sync"]);
  });

  it("cuts the file behind what tables refer to, if something was given up", () => {
    const sample = new Sample({ virtualSize: GIB, clusters: { 3: { kind: "zero" } } });
    const { allocator, content } = sample;
    allocator.reserve();
    allocator.take(5);
    allocator.giveUp(allocator.taken, 5);
    allocator.close();
    expect(content.length).toBe(sample.clusters * 65536);
  });
});
