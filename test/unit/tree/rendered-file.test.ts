/** NAME.stats.json: one text per open, the same for all threads, and what it says. */

import { describe, expect, it, vi } from "vitest";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import type { FileNode } from "../../../src/tree/node.ts";
import { RENDERED_FILE_WORDS, RenderedFile } from "../../../src/tree/rendered-file.ts";
import type { Tree } from "../../../src/tree/tree.ts";
import { asArray, asRecord } from "../../support/json.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { DAEMON_PID, withTree } from "./sample-tree.ts";

const memory = (): Int32Array => new Int32Array(new SharedArrayBuffer(RENDERED_FILE_WORDS * 4));

function readAll(node: FileNode, handle: number): string {
  const target = NativeBuffer.allocate(16384);
  const count = node.read(handle, 0, 16384, target, 0);
  return Buffer.from(target.bytes.subarray(0, count)).toString();
}

function textOf(node: FileNode): string {
  const { handle } = node.open({ direct: false, truncates: false });
  try {
    return readAll(node, handle);
  } finally {
    node.release(handle);
  }
}

describe("RenderedFile", () => {
  it("keeps the text of the moment when it was opened", () => {
    let text = "one";
    const node = new RenderedFile(17, memory(), () => text);
    const first = node.open().handle;
    text = "number two";
    const second = node.open().handle;
    try {
      expect(readAll(node, first)).toBe("one");
      expect(readAll(node, second)).toBe("number two");
    } finally {
      node.release(first);
      node.release(second);
    }
  });

  it("has the size of the text that was opened last, in every thread", () => {
    let text = "one";
    const shared = memory();
    const node = new RenderedFile(17, shared, () => text);
    const other = new RenderedFile(17, shared, () => text);
    const { handle } = node.open();
    text = "ünö";
    expect([node.attributes().size, other.attributes().size]).toEqual([3, 3]);
    const second = other.open().handle;
    expect(node.attributes().size).toBe(5);
    other.release(handle);
    node.release(second);
    expect([node.attributes().size, other.attributes().size]).toEqual([5, 5]);
  });

  it("does not look at the image for its size, but only when it is opened", () => {
    const asked: string[] = [];
    const node = new RenderedFile(17, memory(), (what) => {
      asked.push(what);
      return what;
    });
    // Whole blocks, more than it will be: who reads as much loses nothing.
    expect(node.attributes().size).toBe(8192);
    node.release(node.open().handle);
    expect(node.attributes().size).toBe("all".length);
    expect(asked).toEqual(["cheap", "all"]);
  });

  it("was modified when it was opened last, not whenever somebody asks", () => {
    vi.useFakeTimers({ toFake: ["Date"] });
    try {
      const node = new RenderedFile(17, memory(), () => "one");
      for (const seconds of [3_000_000_000, 3_000_000_100]) {
        vi.setSystemTime(seconds * 1000 + 250);
        node.release(node.open().handle);
        vi.setSystemTime(seconds * 1000 + 60_000);
        expect(node.attributes().modifiedAt).toBe(seconds);
      }
    } finally {
      vi.useRealTimers();
    }
  });

  it("can be read by a thread that did not open it, from any offset", () => {
    const shared = memory();
    const { handle } = new RenderedFile(17, shared, () => "0123456789").open();
    const other = new RenderedFile(17, shared, () => "");
    const target = NativeBuffer.allocate(20);
    try {
      expect(other.read(handle, 7, 20, target, 5)).toBe(3);
      expect(Buffer.from(target.bytes.subarray(5, 8)).toString()).toBe("789");
      expect(other.read(handle, 10, 5, target, 0)).toBe(0);
      expect(other.read(handle, 2 ** 50, 5, target, 0)).toBe(0);
    } finally {
      other.release(handle);
    }
  });

  it("is data up to its size, and bypasses the page cache", () => {
    const node = new RenderedFile(17, memory(), () => "0123456789");
    const { handle, directIo, keepCache } = node.open();
    try {
      expect({ directIo, keepCache }).toEqual({ directIo: true, keepCache: false });
      expect([node.seek(3, "data"), node.seek(3, "hole"), node.seek(10, "data")]).toEqual([
        3, 10, -1,
      ]);
    } finally {
      node.release(handle);
    }
  });
});

describe("the text of a stats file", () => {
  const stats = (tree: Tree): Readonly<Record<string, unknown>> => {
    const node = tree.node(17);
    if (node?.kind !== "file") throw new Error("no stats file");
    const text = textOf(node);
    expect(text.endsWith("}\n")).toBe(true);
    return asRecord(JSON.parse(text));
  };

  it("describes the device and its backing chain", async () => {
    const top = qcow2Bytes({ virtualSize: 8192, backingFile: "base.raw", backingFormat: "raw" });
    await withTree(
      [
        ["top.qcow2", top],
        ["base.raw", Buffer.alloc(1000)],
      ],
      ({ tree, directory }) => {
        expect(stats(tree)).toMatchObject({
          format: "qcow2",
          filename: `${directory}/top.qcow2`,
          "virtual-size": 8192,
          "cluster-size": 65536,
          "backing-filename": "base.raw",
          "read-only": true,
          "daemon-pid": DAEMON_PID,
          "backing-chain": [
            { filename: `${directory}/top.qcow2`, format: "qcow2", "file-size": top.length },
            {
              filename: `${directory}/base.raw`,
              format: "raw",
              "virtual-size": 1024,
              "file-size": 1000,
            },
          ],
        });
      },
      { devices: 1 },
    );
  });

  it("counts what all threads read, seek and open, and what fails", async () => {
    const entry = { kind: "entry", entry: 0x200n + (1n << 55n) } as const;
    const bytes = qcow2Bytes({ clusterBits: 9, virtualSize: 8192, clusters: { 3: entry } });
    await withTree([["a.qcow2", bytes]], ({ treeOf, tree }) => {
      const target = NativeBuffer.allocate(8192);
      for (const thread of [0, 1, 2]) {
        const node = treeOf(thread).node(16);
        if (node?.kind !== "file") throw new Error("no device");
        node.open({ direct: false, truncates: false });
        node.read(0, 0, 100, target, 0);
        node.read(0, 8190, 100, target, 0);
        node.seek(0, "hole");
        expect(() => node.read(0, 3 * 512, 10, target, 0)).toThrow();
      }
      const io = asRecord(stats(tree)["io"]);
      expect(io).toMatchObject({ opens: 3, "copy-on-read-stored": 0, "punched-bytes": 0 });
      // The first reads the table; then all threads have it.
      expect(io["table-cache-misses"]).toBe(1);
      expect(io["table-cache-hits"]).toBeGreaterThanOrEqual(11);
      expect(io["operations"]).toMatchObject({
        read: { requests: 9, bytes: 306, errors: 3 },
        seek: { requests: 3, bytes: 0, errors: 0 },
        write: { requests: 0, "latency-us": { mean: 0, p50: 0, p99: 0, max: 0 } },
      });
      const threads = asArray(io["threads"]).map(asRecord);
      expect(threads.map(({ role }) => role)).toEqual(["io", "io", "io", "upkeep"]);
      for (const [thread, fields] of threads.entries()) {
        const operations = asRecord(fields["operations"]);
        expect(fields["thread"]).toBe(thread);
        expect(Object.keys(operations)).toEqual(thread < 3 ? ["read", "seek"] : []);
        if (thread < 3) expect(operations["read"]).toMatchObject({ requests: 3, bytes: 102 });
      }
    });
  });
});
