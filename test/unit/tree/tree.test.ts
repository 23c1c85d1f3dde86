/** What a mount shows: names, node ids that all threads agree on, and snapshots. */

import { describe, expect, it } from "vitest";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import type { DirectoryEntry, DirectoryNode, FileNode, TreeNode } from "../../../src/tree/node.ts";
import { ROOT_NODEID, type Tree } from "../../../src/tree/tree.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { qedBytes } from "../../support/qed-builder.ts";
import { ALLOCATED_SIZE, DAEMON_PID, MODIFIED_AT, withTree } from "./sample-tree.ts";

const VIRTUAL_SIZE = 8192;

const qcow2 = qcow2Bytes({
  clusterBits: 9,
  virtualSize: VIRTUAL_SIZE,
  clusters: { 0: { kind: "data", bytes: Buffer.alloc(512, 0xa1) } },
  snapshots: [
    { name: "first", clusters: { 0: { kind: "data", bytes: Buffer.alloc(512, 0x51) } } },
    { name: "../sec/ond", diskSize: 1024 },
    { name: "first" },
  ],
});
const IMAGES = [
  ["a.qcow2", qcow2],
  ["b.qed", qedBytes({ clusterSize: 4096, tableClusters: 1, virtualSize: VIRTUAL_SIZE })],
  ["c.raw", Buffer.alloc(1000, 0xc1)],
] as const;

function directory(node: TreeNode | undefined): DirectoryNode {
  if (node?.kind !== "directory") throw new Error(`a directory expected, not ${node?.kind}`);
  return node;
}

function file(node: TreeNode | undefined): FileNode {
  if (node?.kind !== "file") throw new Error(`a file expected, not ${node?.kind}`);
  return node;
}

function* entriesOf(directory: DirectoryNode): Generator<DirectoryEntry> {
  for (let index = 0; ; index++) {
    const entry = directory.entryAt(index);
    if (entry === undefined) return;
    yield entry;
  }
}

const namesIn = (node: TreeNode | undefined): string[] =>
  Array.from(entriesOf(directory(node)), ({ name }) => name);

function firstByte(node: TreeNode | undefined): number | undefined {
  const target = NativeBuffer.allocate(1);
  return file(node).read(0, 0, 1, target, 0) === 1 ? target.bytes[0] : undefined;
}

/** All nodes of a tree: path and node id. */
function walk(tree: Tree): Map<string, number> {
  const found = new Map<string, number>();
  const visit = (path: string, node: TreeNode): void => {
    found.set(path, node.nodeid);
    if (node.kind === "file") return;
    for (const entry of entriesOf(node)) visit(`${path}/${entry.name}`, entry.node);
  };
  visit("", tree.root);
  return found;
}

describe("Tree", () => {
  it("shows a device, its statistics, its partitions and, of qcow2 images, its snapshots", async () => {
    await withTree(IMAGES, ({ tree }) => {
      expect(namesIn(tree.root)).toEqual([
        "a.raw",
        "a.stats.json",
        "a.snapshots",
        "a.partitions",
        "b.raw",
        "b.stats.json",
        "b.partitions",
        "c.raw",
        "c.stats.json",
        "c.partitions",
        "metrics",
      ]);
      const root = directory(tree.root);
      expect(root.parent).toBeUndefined();
      expect(root.attributes()).toMatchObject({ nodeid: ROOT_NODEID, isDirectory: true });
      expect(root.attributes().modifiedAt).toBe(MODIFIED_AT + 2);
      expect(root.lookup("a")).toBeUndefined();
      expect(root.lookup("__proto__")).toBeUndefined();
      expect(directory(root.lookup("a.snapshots")).parent).toBe(root);
    });
  });

  it("gives every node an id of its own, and finds it by that", async () => {
    await withTree(IMAGES, ({ tree }) => {
      const ids = [...walk(tree).values()];
      expect(new Set(ids).size).toBe(ids.length);
      for (const id of ids) expect(tree.node(id)?.nodeid).toBe(id);
      expect(ids.every((id) => id > 0 && Number.isSafeInteger(id))).toBe(true);
    });
  });

  it("gives the same ids in every thread, also those that another thread told the kernel of", async () => {
    await withTree(IMAGES, ({ tree, treeOf }) => {
      const paths = walk(tree);
      expect(walk(treeOf(1))).toEqual(paths);
      const fresh = treeOf(2);
      const snapshot = paths.get("/a.snapshots/first.raw") ?? 0;
      expect(snapshot).toBeGreaterThan(2 ** 32 - 1);
      expect(firstByte(fresh.node(snapshot))).toBe(0x51);
    });
  });

  it.each([
    0,
    3,
    15,
    18 + 4,
    2 ** 31,
    2 ** 32 + 3,
    2 ** 32 - 1,
    2 * 2 ** 32,
    99 * 2 ** 32,
    2 ** 52,
    2 ** 52 + 1,
    2 ** 52 + 2 ** 32 + 2 ** 31,
    2 ** 52 + 99 * 2 ** 32,
    2 ** 60,
    -1,
  ])("has no node %i", async (nodeid) => {
    await withTree(IMAGES, ({ tree }) => expect(tree.node(nodeid)).toBeUndefined());
  });

  it("shows snapshots under safe names, with their own size and content", async () => {
    await withTree(IMAGES, ({ tree }) => {
      const snapshots = directory(directory(tree.root).lookup("a.snapshots"));
      expect(namesIn(snapshots)).toEqual(["first.raw", ".._sec_ond.raw", "first~3.raw"]);
      expect(firstByte(directory(tree.root).lookup("a.raw"))).toBe(0xa1);
      expect(firstByte(snapshots.lookup("first.raw"))).toBe(0x51);
      expect(firstByte(snapshots.lookup("first~3.raw"))).toBe(0xa1);
      expect(snapshots.lookup(".._sec_ond.raw")?.attributes().size).toBe(1024);
    });
  });

  it("shows an empty directory for an image without snapshots", async () => {
    await withTree([["a.qcow2", qcow2Bytes()]], ({ tree }) => {
      expect(namesIn(directory(tree.root).lookup("a.snapshots"))).toEqual([]);
    });
  });

  it("is the device itself where the mount point is a file", async () => {
    await withTree(
      IMAGES,
      ({ tree }) => {
        expect(tree.root.kind).toBe("file");
        expect(tree.node(ROOT_NODEID)).toBe(tree.root);
        expect(firstByte(tree.root)).toBe(0xa1);
        expect(tree.node(16)).toBeUndefined();
        expect(tree.node(2 ** 32)).toBeUndefined();
      },
      { devices: 1, rootIsDevice: true },
    );
  });

  it("describes devices in extended attributes", async () => {
    const overlay = qcow2Bytes({
      virtualSize: VIRTUAL_SIZE,
      backingFile: "c.raw",
      backingFormat: "raw",
    });
    await withTree(
      [
        ["top.qcow2", overlay],
        ["c.raw", Buffer.alloc(1000)],
      ],
      ({ tree, directory: path }) => {
        const top = directory(tree.root).lookup("top.raw");
        const xattrs = top?.xattrs();
        const names = [...(xattrs?.keys() ?? [])];
        expect(names.pop()).toBe("user.tsimgfs.counters");
        expect(Object.fromEntries(names.map((name) => [name, xattrs?.get(name)]))).toEqual({
          "user.tsimgfs.format": "qcow2",
          "user.tsimgfs.image": `${path}/top.qcow2`,
          "user.tsimgfs.virtual-size": "8192",
          "user.tsimgfs.cluster-size": "65536",
          "user.tsimgfs.backing-file": "c.raw",
          "user.tsimgfs.pid": String(DAEMON_PID),
        });
        expect(tree.root.xattrs().get("user.tsimgfs.pid")).toBe(String(DAEMON_PID));
      },
      { devices: 1 },
    );
  });

  it("fails with an I/O error for whoever reads a snapshot that is damaged", async () => {
    const bytes = Buffer.from(qcow2);
    const table = Number(bytes.readBigUInt64BE(64));
    bytes.writeBigUInt64BE(0x1_0201n, table);
    await withTree([["a.qcow2", bytes]], ({ tree }) => {
      const snapshots = directory(directory(tree.root).lookup("a.snapshots"));
      expect(() => firstByte(snapshots.lookup("first.raw"))).toThrow(
        expect.objectContaining({
          code: "EIO",
          message: expect.stringMatching(/snapshot 0: .*is not a multiple/),
        }),
      );
      expect(firstByte(snapshots.lookup(".._sec_ond.raw"))).toBe(0xa1);
    });
  });
});

describe("devices", () => {
  it("have the attributes of a file that is read in large pieces", async () => {
    await withTree(IMAGES, ({ tree }) => {
      const { lookup } = { lookup: (name: string) => file(directory(tree.root).lookup(name)) };
      expect(lookup("a.raw").attributes()).toMatchObject({
        isDirectory: false,
        size: VIRTUAL_SIZE,
        blocks: ALLOCATED_SIZE / 512,
        links: 1,
        modifiedAt: MODIFIED_AT,
      });
      // A raw file of 1000 bytes is a disk of two sectors, which occupies no more than these.
      expect(lookup("c.raw").attributes()).toMatchObject({ size: 1024, blocks: 2 });
      expect(lookup("b.raw").capacity()).toEqual({ blockSize: 4096, size: VIRTUAL_SIZE });
      expect(lookup("a.raw").capacity().blockSize).toBe(4096);
      expect(tree.root.capacity().size).toBe(2 * VIRTUAL_SIZE + 1024);
    });
  });

  it("read up to their end and nothing beyond", async () => {
    await withTree(IMAGES, ({ tree }) => {
      const device = file(directory(tree.root).lookup("c.raw"));
      const target = NativeBuffer.allocate(2000);
      const count = (offset: number, length: number): number =>
        device.read(0, offset, length, target, 0);
      expect(count(0, 2000)).toBe(1024);
      expect([target.bytes[999], target.bytes[1000], target.bytes[1023]]).toEqual([0xc1, 0, 0]);
      expect(count(1023, 100)).toBe(1);
      expect(count(1024, 100)).toBe(0);
      expect(count(2 ** 60, 100)).toBe(0);
      expect(count(5, 0)).toBe(0);
    });
  });

  it("find data and holes up to their end", async () => {
    await withTree(IMAGES, ({ tree }) => {
      const device = file(directory(tree.root).lookup("a.raw"));
      expect(device.seek(0, "data")).toBe(0);
      expect(device.seek(100, "data")).toBe(100);
      expect(device.seek(100, "hole")).toBe(512);
      expect(device.seek(512, "data")).toBe(-1);
      expect(device.seek(VIRTUAL_SIZE - 1, "hole")).toBe(VIRTUAL_SIZE - 1);
      expect(device.seek(VIRTUAL_SIZE, "hole")).toBe(-1);
      expect(device.seek(2 ** 60, "data")).toBe(-1);
    });
  });
});
