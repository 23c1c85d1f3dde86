/** Windows of a device: bounds, files that were opened with O_TRUNC, tables that change. */

import { describe, expect, it } from "vitest";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import type { DirectoryNode, FileNode, TreeNode } from "../../../src/tree/node.ts";
import { createPartitionWindows, PartitionWindows } from "../../../src/tree/partition-windows.ts";
import type { Tree } from "../../../src/tree/tree.ts";
import { type SampleTree, withTree } from "./sample-tree.ts";

const SECTOR = 512;
const SECTORS = 64;
/** Sectors of the partition. */
const START = 8;
const COUNT = 16;
const POLICY = {
  copyOnRead: true,
  detectZeroes: "on",
  discard: "unmap",
  growable: true,
} as const;

/** A disk of 0xee with one partition. */
function disk(start = START, count = COUNT): Buffer {
  const bytes = Buffer.alloc(SECTORS * SECTOR, 0xee);
  bytes.fill(0, 0, SECTOR);
  bytes[446 + 4] = 0x83;
  bytes.writeUInt32LE(start, 446 + 8);
  bytes.writeUInt32LE(count, 446 + 12);
  bytes.writeUInt16LE(0xaa55, 510);
  return bytes;
}

function file(node: TreeNode | undefined): FileNode {
  if (node?.kind !== "file") throw new Error(`a file expected, not ${node?.kind}`);
  return node;
}

function directory(node: TreeNode | undefined): DirectoryNode {
  if (node?.kind !== "directory") throw new Error(`a directory expected, not ${node?.kind}`);
  return node;
}

const deviceOf = (tree: Tree): FileNode => file(directory(tree.root).lookup("a.raw"));

function partitionOf(tree: Tree, name = "1.raw"): TreeNode | undefined {
  const partitions = directory(directory(tree.root).lookup("a.partitions"));
  partitions.refresh();
  return partitions.lookup(name);
}

function read(node: FileNode, offset: number, length: number): Buffer {
  const target = NativeBuffer.allocate(length);
  const count = node.read(0, offset, length, target, 0);
  return Buffer.from(target.bytes.subarray(0, count));
}

function write(node: FileNode, offset: number, bytes: Buffer, handle = 0): number {
  const source = NativeBuffer.allocate(bytes.length);
  source.bytes.set(bytes);
  return node.write(handle, offset, bytes.length, source, 0);
}

const withDisk = (body: (sample: SampleTree) => void): Promise<void> =>
  withTree([["a.raw", disk()]], body, { policy: POLICY });

describe("Partition", () => {
  it("reads and writes its range, and nothing else", async () => {
    await withDisk(({ tree }) => {
      const partition = file(partitionOf(tree));
      const before = read(deviceOf(tree), 0, SECTORS * SECTOR);
      expect(partition.attributes().size).toBe(COUNT * SECTOR);
      expect(read(partition, COUNT * SECTOR - 10, 100)).toEqual(Buffer.alloc(10, 0xee));
      expect(read(partition, COUNT * SECTOR, 100)).toHaveLength(0);
      expect(write(partition, 0, Buffer.alloc(10, 1))).toBe(10);
      expect(write(partition, COUNT * SECTOR - 3, Buffer.alloc(10, 2))).toBe(3);
      expect(write(partition, COUNT * SECTOR, Buffer.alloc(10, 3))).toBe(-1);
      expect(write(partition, COUNT * SECTOR + 9, Buffer.alloc(0))).toBe(0);
      before.fill(1, START * SECTOR, START * SECTOR + 10);
      before.fill(2, (START + COUNT) * SECTOR - 3, (START + COUNT) * SECTOR);
      expect(read(deviceOf(tree), 0, SECTORS * SECTOR)).toEqual(before);
    });
  });

  it.each([
    { what: "punch", keepsSize: true, done: true },
    { what: "zero", keepsSize: true, done: true },
    { what: "zero", keepsSize: false, done: false },
    { what: "allocate", keepsSize: true, done: false },
  ] as const)("does not $what past its end: $done, $keepsSize", async (change) => {
    await withDisk(({ tree }) => {
      const wanted = read(deviceOf(tree), 0, SECTORS * SECTOR);
      const offset = (COUNT - 1) * SECTOR;
      const partition = file(partitionOf(tree));
      const done = partition.allocateRange(offset, 4 * SECTOR, change.what, change.keepsSize);
      expect(done).toBe(change.done);
      if (done) wanted.fill(0, (START + COUNT - 1) * SECTOR, (START + COUNT) * SECTOR);
      expect(read(deviceOf(tree), 0, SECTORS * SECTOR)).toEqual(wanted);
    });
  });

  it("has a fixed size, also on a disk that can grow", async () => {
    await withDisk(({ tree }) => {
      const partition = file(partitionOf(tree));
      expect(partition.setSize(0, COUNT * SECTOR)).toBe(true);
      expect(partition.setSize(0, COUNT * SECTOR + 1)).toBe(false);
      expect(partition.setSize(0, 0)).toBe(false);
    });
  });

  it("zeroes what a writer who emptied it skips, from its own start on", async () => {
    await withDisk(({ tree }) => {
      const wanted = read(deviceOf(tree), 0, SECTORS * SECTOR);
      const partition = file(partitionOf(tree));
      const { handle } = partition.open({ direct: false, truncates: true });
      write(partition, 2 * SECTOR, Buffer.alloc(SECTOR, 5), handle);
      expect(partition.setSize(handle, 4 * SECTOR)).toBe(true);
      partition.release(handle);
      wanted.fill(0, START * SECTOR, (START + 4) * SECTOR);
      wanted.fill(5, (START + 2) * SECTOR, (START + 3) * SECTOR);
      expect(read(deviceOf(tree), 0, SECTORS * SECTOR)).toEqual(wanted);
    });
  });

  it("is never cached; what is cached of the device is dropped after a write", async () => {
    await withDisk(({ treeOf }) => {
      const partition = file(partitionOf(treeOf(0)));
      const plain = { direct: false, truncates: false };
      expect(partition.open(plain)).toMatchObject({ directIo: true, keepCache: false });
      const device = deviceOf(treeOf(1));
      expect(device.open(plain).keepCache).toBe(true);
      write(partition, 0, Buffer.alloc(1));
      expect(device.open({ ...plain, direct: true }).keepCache).toBe(true);
      expect(device.open(plain).keepCache).toBe(false);
      expect(device.open(plain).keepCache).toBe(true);
      partition.allocateRange(0, SECTOR, "punch", true);
      expect(device.open(plain).keepCache).toBe(false);
    });
  });

  it("keeps its node id and its range in all threads; a table that changes gives new ones", async () => {
    await withDisk(({ treeOf }) => {
      const first = file(partitionOf(treeOf(0)));
      const other = treeOf(1);
      expect(file(partitionOf(other)).nodeid).toBe(first.nodeid);
      write(deviceOf(treeOf(2)), 0, disk(START + 1).subarray(0, SECTOR));
      const second = file(partitionOf(other));
      expect(second.nodeid).not.toBe(first.nodeid);
      const known = file(treeOf(3).node(first.nodeid));
      write(known, 0, Buffer.alloc(1, 7));
      expect(read(deviceOf(other), START * SECTOR, 1)).toEqual(Buffer.alloc(1, 7));
      expect(() => known.open({ direct: false, truncates: false })).toThrow(/partition 1 is not/);
      expect(known.xattrs().get("user.tsimgfs.partition-type")).toBeUndefined();
      second.open({ direct: false, truncates: false });
    });
  });

  it("fails past the end of a disk that was made smaller, which does not grow again", async () => {
    await withDisk(({ tree }) => {
      const partition = file(partitionOf(tree));
      expect(deviceOf(tree).setSize(0, (START + 2) * SECTOR)).toBe(true);
      expect(read(partition, 0, 4 * SECTOR)).toHaveLength(2 * SECTOR);
      expect(() => write(partition, SECTOR, Buffer.alloc(2 * SECTOR))).toThrow(/past the end/);
      expect(() => partition.allocateRange(SECTOR, 2 * SECTOR, "zero", true)).toThrow(
        /past the end/,
      );
      expect(deviceOf(tree).attributes().size).toBe((START + 2) * SECTOR);
    });
  });
});

describe("PartitionWindows", () => {
  it("gives equal windows one number, others another, and forgets the oldest", () => {
    const memory = createPartitionWindows(2);
    const windows = new PartitionWindows(memory, 1);
    const other = new PartitionWindows(memory, 0);
    const window = (start: number): { number: number; start: number; size: number } => ({
      number: 1,
      start,
      size: 512,
    });
    expect(windows.has(0)).toBe(false);
    const first = windows.register(window(0));
    expect(windows.register(window(0))).toBe(first);
    expect(other.find(first)).toBeUndefined();
    const later = Array.from({ length: 1023 }, (_, index) => windows.register(window(index + 1)));
    expect(new Set([first, ...later]).size).toBe(1024);
    expect(windows.find(first)).toEqual(window(0));
    const last = windows.register(window(2 ** 40));
    expect(windows.find(first)).toBeUndefined();
    expect(windows.find(last)).toEqual(window(2 ** 40));
    expect(windows.register(window(1))).toBe(later[0]);
    expect(windows.register(window(0))).toBe(last + 1);
  });
});
