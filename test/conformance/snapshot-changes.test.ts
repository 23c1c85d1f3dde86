// Making, applying and deleting internal snapshots beside qemu-img: the same disks, the same lists, and images
// that qemu-img check finds nothing in. What cannot be done changes nothing.

import { copyFile, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { attachDisk } from "../../src/block/attach-disk.ts";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import type { SnapshotAction } from "../../src/block/snapshots.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { buildQcow2 } from "../support/qcow2-builder.ts";
import { convertToRaw, createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { makePatterns, scribbleCommands } from "../support/scribble.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";

interface Variant {
  readonly label: string;
  readonly clusterSize: number;
  readonly options: Readonly<Record<string, string | number>>;
  readonly backed?: boolean;
  /** Some clusters are compressed. */
  readonly compressed?: boolean;
}

const VARIANTS: readonly Variant[] = [
  { label: "64k", clusterSize: 65536, options: {} },
  { label: "512", clusterSize: 512, options: {}, compressed: true },
  {
    label: "v2 4k over a backing file",
    clusterSize: 4096,
    options: { compat: "0.10" },
    backed: true,
  },
  { label: "4k compressed", clusterSize: 4096, options: {}, compressed: true },
  {
    label: "extended L2 16k",
    clusterSize: 16384,
    options: { extended_l2: "on", refcount_bits: 64 },
    backed: true,
  },
  ...byScale<readonly Variant[]>(
    [],
    [
      { label: "4-bit refcounts 2M", clusterSize: 2 ** 21, options: { refcount_bits: 4 } },
      { label: "8-bit refcounts 4k", clusterSize: 4096, options: { refcount_bits: 8 } },
      { label: "lazy refcounts", clusterSize: 65536, options: { lazy_refcounts: "on" } },
    ],
  ),
];

/** Carries out one change with our engine, as the command does. */
function change(image: string, action: SnapshotAction, name: string): void {
  const policy = {
    copyOnRead: false,
    detectZeroes: "off",
    discard: "unmap",
    growable: false,
  } as const;
  const chain = openChain(image, {
    format: "qcow2",
    backingPolicy: "any",
    forceShare: false,
    writing: { policy, threads: 1 },
  });
  try {
    const thread = { slot: 0, requestMaintenance: undefined };
    const disk = attachDisk(chain, { clusterCache: new ClusterCache() }, thread);
    try {
      disk.changeSnapshots(action, name);
    } finally {
      disk.close();
    }
  } finally {
    closeChain(chain);
  }
}

const FLAGS: Readonly<Record<SnapshotAction, string>> = { create: "-c", apply: "-a", delete: "-d" };

/** Ids and names, as qemu-img lists them. */
async function listOf(image: string): Promise<string[]> {
  const { stdout } = await run("qemu-img", ["snapshot", "-l", image]);
  return stdout
    .split("\n")
    .slice(2)
    .map((line) => line.split(/\s+/).slice(0, 2).join(" "));
}

/** The disk of an image, or of a snapshot of it, must be the same as that of QEMU's image. */
async function expectSame(image: string, mirror: string, names: readonly string[]): Promise<void> {
  await run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "qcow2", image, mirror]);
  for (const name of names) {
    const args = ["convert", "-f", "qcow2", "-O", "raw", "-l", name];
    await run("qemu-img", [...args, image, `${image}.raw`]);
    await run("qemu-img", [...args, mirror, `${mirror}.raw`]);
    await run("cmp", [`${image}.raw`, `${mirror}.raw`]);
  }
}

describe("changes of snapshots beside qemu-img", () => {
  it.each(VARIANTS)("$label", async ({ label, clusterSize, options, backed, compressed }) => {
    await withScratch("snapshot-changes", async (directory) => {
      const random = new Random(label);
      const size = Math.max(96 * clusterSize, 2 ** 19);
      const [image, mirror] = [join(directory, "ours.qcow2"), join(directory, "qemu.qcow2")];
      const backing = join(directory, "backing.raw");
      await writeFile(backing, random.bytes(2 ** 18));
      await createImage(image, "qcow2", {
        size,
        options: { ...options, cluster_size: clusterSize },
        ...(backed === true ? { backing: { file: backing, format: "raw" } } : {}),
      });
      const patterns = await makePatterns(directory, random);
      const plain = options["compat"] === "0.10";
      const work = async (compressedClusters = 0): Promise<void> => {
        const commands = scribbleCommands(
          random,
          {
            size,
            clusterSize,
            count: 8,
            kinds: plain ? ["write"] : ["write", "zero", "unmap"],
            compressedClusters,
          },
          patterns,
        );
        await qemuIo(image, "qcow2", commands);
        await qemuIo(mirror, "qcow2", commands);
      };
      await copyFile(image, mirror);
      await work(compressed === true ? 20 : 0);
      const both = async (action: SnapshotAction, name: string): Promise<void> => {
        change(image, action, name);
        await run("qemu-img", ["snapshot", FLAGS[action], name, mirror]);
        await expectClean(image);
        const list = await listOf(image);
        expect(list).toEqual(await listOf(mirror));
        const names = list.filter((line) => line !== "").map((line) => line.split(" ")[1] ?? "");
        await expectSame(image, mirror, [...new Set(names)]);
      };
      await both("create", "one");
      await work();
      await both("create", "two");
      await both("apply", "one");
      await work();
      // A name may be there twice: the first one is meant.
      await both("create", "two");
      await both("delete", "two");
      await both("apply", "3");
      await work();
      await both("delete", "one");
      await both("delete", "two");
      await expectClean(image);
    });
  });

  it("reuses the places of what it has replaced: the image does not grow", async () => {
    await withScratch("snapshot-changes", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: 2 ** 24, options: { cluster_size: 4096 } });
      await qemuIo(image, "qcow2", ["write -q -P 1 0 5M"]);
      change(image, "create", "one");
      change(image, "delete", "one");
      change(image, "create", "one");
      change(image, "delete", "one");
      const { size } = await stat(image);
      for (let round = 0; round < 20; round++) {
        change(image, "create", "one");
        change(image, "delete", "one");
      }
      expect((await stat(image)).size).toBe(size);
      await expectClean(image);
    });
  });

  it("makes the refcount table larger if it must", async () => {
    await withScratch("snapshot-changes", async (directory) => {
      const image = join(directory, "disk.qcow2");
      // One cluster of the table counts 2 MiB.
      const options = { cluster_size: 512, refcount_bits: 64 };
      await createImage(image, "qcow2", { size: 2 ** 22, options });
      await qemuIo(image, "qcow2", ["write -q -P 1 0 2000k"]);
      for (const name of ["one", "two", "three", "four"]) {
        change(image, "create", name);
        await expectClean(image);
        await qemuIo(image, "qcow2", ["write -q -P 2 0 200k"]);
      }
      for (const name of ["two", "four", "one", "three"]) change(image, "delete", name);
      await expectClean(image);
    });
  });

  it("gives the disk the size that it had", async () => {
    await withScratch("snapshot-changes", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: 2 ** 20, options: { cluster_size: 512 } });
      await qemuIo(image, "qcow2", ["write -q -P 1 0 1M"]);
      await convertToRaw(image, "qcow2", `${image}.small`);
      change(image, "create", "small");
      await run("qemu-img", ["resize", "-q", "-f", "qcow2", image, "8M"]);
      await qemuIo(image, "qcow2", ["write -q -P 2 7M 1M"]);
      await convertToRaw(image, "qcow2", `${image}.large`);
      change(image, "create", "large");
      for (const name of ["small", "large", "small"]) {
        change(image, "apply", name);
        await expectClean(image);
        await convertToRaw(image, "qcow2", `${image}.now`);
        await run("cmp", [`${image}.now`, `${image}.${name}`]);
      }
    });
  });
});

describe("snapshots that cannot be", () => {
  it.each([1, 2])("counted by refcounts of %i bits change nothing", async (bits) => {
    await withScratch("snapshot-changes", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: 2 ** 20, options: { refcount_bits: bits } });
      await qemuIo(image, "qcow2", ["write -q -P 1 0 64k"]);
      for (let fits = 1; fits < 2 ** bits - 1; fits++) change(image, "create", "fits");
      const before = await readFile(image);
      expect(() => change(image, "create", "more")).toThrow(
        new RegExp(`refcounts of ${bits} bits count to ${2 ** bits - 1} only`),
      );
      expect((await readFile(image)).equals(before)).toBe(true);
    });
  });

  it("are refused in one line", async () => {
    await withScratch("snapshot-changes", async (directory) => {
      const path = (name: string): string => join(directory, name);
      await createImage(path("disk.raw"), "raw", { size: 2 ** 20 });
      await createImage(path("disk.qed"), "qed", { size: 2 ** 20 });
      await run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "ext.qcow2", "1M"],
        {
          cwd: directory,
        },
      );
      await createImage(path("disk.qcow2"), "qcow2", { size: 2 ** 20 });
      change(path("disk.qcow2"), "create", "kept");
      await run("qemu-img", ["bitmap", "--add", path("disk.qcow2"), "b0"]);
      const before = await readFile(path("disk.qcow2"));
      await expectRefusal(["snapshot", "-c", "x", path("disk.raw")], [/has no internal snapshots/]);
      await expectRefusal(["snapshot", "-c", "x", path("disk.qed")], [/has no internal snapshots/]);
      await expectRefusal(["snapshot", "-c", "x", path("ext.qcow2")], [/external data file/]);
      const refuse = (args: readonly string[], reason: RegExp): Promise<unknown> =>
        expectRefusal(["snapshot", ...args, path("disk.qcow2")], [reason]);
      await refuse(["-a", "kept"], /has bitmaps/);
      await refuse(["-a", "none"], /has no snapshot "none"/);
      // As qemu-img: an id is no name.
      await refuse(["-d", "1"], /has no snapshot "1"/);
      await refuse(["-c", "n".repeat(256)], /at most 255 bytes/);
      await refuse(["-l", "-c", "x"], /cannot be mixed/);
      await refuse(["-c", "x", "-c", "y"], /cannot be mixed, nor repeated/);
      await refuse(["-d", "kept", "-d", "kept"], /cannot be mixed, nor repeated/);
      expect((await readFile(path("disk.qcow2"))).equals(before)).toBe(true);
    });
  });

  it("exceed no limit of the table", async () => {
    await withScratch("snapshot-changes", async (directory) => {
      const image = join(directory, "disk.qcow2");
      const { bytes } = buildQcow2({
        clusterBits: 9,
        virtualSize: 512,
        snapshots: Array.from({ length: 65536 }, (_, index) => ({ name: `${index}` })),
      });
      await writeFile(image, bytes);
      expect(() => change(image, "create", "one too many")).toThrow(/has 65536 snapshots/);
      expect((await readFile(image)).equals(Buffer.from(bytes))).toBe(true);
    });
  });
});

describe("what others wrote in the snapshot table", () => {
  it("stays byte for byte, VM state included", async () => {
    await withScratch("snapshot-changes", async (directory) => {
      const image = join(directory, "disk.qcow2");
      // Fields that a later version may add follow what is known.
      const extra = Buffer.alloc(40, 0x5a);
      extra.writeBigUInt64BE(123_456n, 0);
      extra.writeBigUInt64BE(65536n * 4n, 8);
      const { bytes } = buildQcow2({
        virtualSize: 65536 * 4,
        clusters: { 0: { kind: "data", bytes: Buffer.alloc(65536, 7) } },
        snapshots: [{ name: "first" }, { name: "others'", extra }, { name: "third" }],
      });
      await writeFile(image, bytes);
      const entry = async (): Promise<Buffer> => {
        const file = await readFile(image);
        const at = file.indexOf(extra) - 40;
        return Buffer.from(file.subarray(at + 16, at + 40 + extra.length + 8));
      };
      const before = await entry();
      change(image, "create", "new");
      change(image, "delete", "first");
      change(image, "delete", "third");
      expect((await entry()).equals(before)).toBe(true);
      expect((await listOf(image)).slice(0, 2)).toEqual(["2 others'", "4 new"]);
      await expectClean(image);
    });
  });
});

describe("tsimgfs snapshot", () => {
  it.each(["1.1", "0.10"])("writes the entry that qemu-img writes: compat %s", async (compat) => {
    await withScratch("snapshot-changes", async (directory) => {
      /** The only entry of the table, of 69 bytes, without the place of its L1 table and the time. */
      const entryOf = async (image: string): Promise<Buffer> => {
        const file = await readFile(image);
        const at = Number(file.readBigUInt64BE(64));
        expect(file.readUInt32BE(60)).toBe(1);
        return Buffer.concat([file.subarray(at + 8, at + 16), file.subarray(at + 24, at + 69)]);
      };
      const [ours, theirs] = [join(directory, "ours.qcow2"), join(directory, "qemu.qcow2")];
      for (const image of [ours, theirs]) {
        await createImage(image, "qcow2", { size: 2 ** 20, options: { compat } });
      }
      await tsimgfs(["snapshot", "-c", "name", ours]);
      await run("qemu-img", ["snapshot", "-c", "name", theirs]);
      expect((await entryOf(ours)).toString("hex")).toBe((await entryOf(theirs)).toString("hex"));
    });
  });

  it("leaves empty what the table does not say, as qemu-img", async () => {
    await withScratch("snapshot-changes", async (directory) => {
      const image = join(directory, "disk.qcow2");
      const extra = Buffer.alloc(24, 0xff);
      extra.writeBigUInt64BE(0n, 0);
      extra.writeBigUInt64BE(65536n, 8);
      const snapshots = [
        { name: "none", extra },
        { name: "short", extra: extra.subarray(0, 16) },
      ];
      await writeFile(image, buildQcow2({ virtualSize: 65536, snapshots }).bytes);
      const { stdout } = await run("qemu-img", ["snapshot", "-l", image]);
      expect((await tsimgfs(["snapshot", "-l", image])).stdout).toBe(stdout);
    });
  });

  it("prints and exits as qemu-img", async () => {
    await withScratch("snapshot-changes", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: 2 ** 20 });
      expect((await tsimgfs(["snapshot", "-l", image])).stdout).toBe("");
      expect((await tsimgfs(["snapshot", "-c", "by us", image])).stdout).toBe("");
      await run("qemu-img", ["snapshot", "-c", "by QEMU", image]);
      const ours = await tsimgfs(["snapshot", "-l", image]);
      const theirs = await run("qemu-img", ["snapshot", "-l", image]);
      expect(ours.stdout).toBe(theirs.stdout);
      expect(ours.stdout).toMatch(/ 00:00:00\.000 {10}0\n.* 00:00:00\.000 {10}0\n$/);
      const { stdout } = await tsimgfs(["snapshot", "-l", "--output", "json", image]);
      const info = await run("qemu-img", ["info", "--output", "json", image]);
      expect(JSON.parse(stdout)).toEqual(JSON.parse(info.stdout).snapshots);
      const { status } = await attemptTsimgfs(["snapshot", "-a", "none", image]);
      expect(status).toBe((await attempt("qemu-img", ["snapshot", "-a", "none", image])).status);
    });
  });
});
