/** Clusters that are written compressed: what QEMU makes of them, what is refused, and failing storage. */

import { describe, expect, it } from "vitest";
import { TsimgfsError } from "../../../src/errors.ts";
import { EXTENT, Extent } from "../../../src/formats/driver.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { FaultyFiles } from "../../support/faulty-files.ts";
import { type CreateOptions, createImage, qemuIo } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { run } from "../../support/run.ts";
import { byScale } from "../../support/scale.ts";
import { expectBytes } from "../expect-bytes.ts";
import {
  type DiskFiles,
  type DiskOptions,
  readDisk,
  type WritableDisk,
  withDiskFiles,
} from "./writable-disk.ts";

const NAME = "disk.qcow2";
const MIB = 2 ** 20;
/** As the command does it: zeros are data like any other. */
const OFF: DiskOptions = { policy: { detectZeroes: "off", copyOnRead: false } };

interface Kind {
  readonly name: string;
  readonly clusterSize: number;
  readonly options: CreateOptions["options"];
}

const KINDS: readonly Kind[] = [
  { name: "v3", clusterSize: 65536, options: {} },
  { name: "v2", clusterSize: 65536, options: { compat: "0.10" } },
  { name: "zstd", clusterSize: 65536, options: { compression_type: "zstd" } },
  { name: "sub-clusters", clusterSize: 65536, options: { extended_l2: "on" } },
  { name: "clusters of 512 bytes", clusterSize: 512, options: { cluster_size: 512 } },
  { name: "clusters of 2 MiB", clusterSize: 2 * MIB, options: { cluster_size: 2 * MIB } },
  {
    name: "refcounts of 1 bit",
    clusterSize: 4096,
    options: { cluster_size: 4096, refcount_bits: 1 },
  },
];

function writeCompressed({ disk }: WritableDisk, offset: number, bytes: Uint8Array): void {
  const source = NativeBuffer.allocate(bytes.length + 80);
  source.bytes.fill(0xdd);
  source.bytes.set(bytes, 80);
  disk.writeCompressed(offset, bytes.length, source, 80);
}

/** Clusters that compress well, a little, or not at all. */
function mixedBytes(random: Random, length: number, clusterSize: number): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at < length; at += clusterSize) {
    const count = Math.min(clusterSize, length - at);
    const kinds = [random.bytes(count), random.text(count), Buffer.alloc(count, random.below(256))];
    parts.push(kinds[random.below(kinds.length)] ?? Buffer.alloc(count));
  }
  return Buffer.concat(parts);
}

/** The code of the error that a call throws. */
function codeOf(call: () => void): string {
  try {
    call();
  } catch (error) {
    if (error instanceof TsimgfsError) return error.code;
    throw error;
  }
  return "none";
}

/** Where a guest offset lies on the host, if it is compressed. */
function streamAt({ disk }: WritableDisk, offset: number): Extent {
  const extent = new Extent();
  disk.chain.image.mapExtent(offset, 1, extent);
  expect(extent.kind).toBe(EXTENT.compressed);
  return extent;
}

describe.each(KINDS)("compressed writes with $name", ({ name, clusterSize, options }) => {
  // Two L2 tables and more where clusters are small, and a last cluster that is cut short.
  const size = Math.min(80, Math.max(3, (3 * MIB) / clusterSize)) * clusterSize - clusterSize / 2;
  const virtualSize = Math.ceil(size / 512) * 512;

  async function use(
    body: (disk: WritableDisk, files: DiskFiles) => void,
    policy = OFF,
  ): Promise<Buffer> {
    return await withDiskFiles(async (files) => {
      await createImage(files.path(NAME), "qcow2", { size: virtualSize, options: options ?? {} });
      const shown = files.use(
        NAME,
        (disk) => {
          body(disk, files);
          return disk.read();
        },
        policy,
      );
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), shown, "as qemu-img reads it");
      expectBytes(
        files.use(NAME, (disk) => disk.read(), OFF),
        shown,
        "opened again",
      );
      return shown;
    });
  }

  it("are read back, by QEMU too, whether they get smaller or not", async () => {
    const random = new Random(`compressed ${name}`);
    const content = Buffer.alloc(virtualSize);
    await use((disk) => {
      for (let offset = 0; offset < virtualSize; ) {
        const length = Math.min(random.between(1, 12) * clusterSize, virtualSize - offset);
        const bytes = mixedBytes(random, length, clusterSize);
        if (random.below(6) > 0) {
          writeCompressed(disk, offset, bytes);
          bytes.copy(content, offset);
        }
        offset += length;
      }
      expectBytes(disk.read(), content);
    });
  });

  it("take the whole disk in one go", async () => {
    const bytes = new Random(`whole ${name}`).text(virtualSize);
    await withDiskFiles(async (files) => {
      await createImage(files.path(NAME), "qcow2", { size: virtualSize, options: options ?? {} });
      files.use(NAME, (disk) => writeCompressed(disk, 0, bytes), OFF);
      const { compressedClusters } = await files.expectClean(NAME);
      // Half a cluster of text may fill more of 512 bytes than the zeros after it save.
      expect(compressedClusters).toBeGreaterThanOrEqual(Math.floor(virtualSize / clusterSize));
      expectBytes(await files.converted(NAME), bytes);
    });
  });

  it("refuse parts of clusters, and change nothing then", async () => {
    const bytes = Buffer.alloc(virtualSize, 7);
    const shown = await use((disk) => {
      const attempt = (offset: number, length: number): string =>
        codeOf(() => writeCompressed(disk, offset, bytes.subarray(0, length)));
      expect(attempt(clusterSize / 2, clusterSize)).toBe("EINVAL");
      expect(attempt(0, clusterSize / 2)).toBe("EINVAL");
      expect(attempt(0, clusterSize + 1)).toBe("EINVAL");
      expect(attempt(clusterSize, 2 * clusterSize - 1)).toBe("EINVAL");
      expect(attempt(1, 0)).toBe("none");
    });
    expect(shown.every((byte) => byte === 0)).toBe(true);
  });

  it("refuse what is allocated, as QEMU, but for what does not get smaller", async () => {
    const noise = new Random(`noise ${name}`).bytes(clusterSize);
    const shown = await use((disk) => {
      disk.fill(clusterSize, clusterSize, 1);
      const twos = Buffer.alloc(2 * clusterSize, 2);
      // The first of both is stored before the second one is refused.
      expect(codeOf(() => writeCompressed(disk, 0, twos))).toBe("EIO");
      expect(codeOf(() => writeCompressed(disk, 0, twos.subarray(0, clusterSize)))).toBe("EIO");
      writeCompressed(disk, clusterSize, noise);
    });
    const head = Buffer.concat([Buffer.alloc(clusterSize, 2), noise]);
    expectBytes(shown.subarray(0, 2 * clusterSize), head);
  });

  it("can be written to, zeroed and discarded afterwards", async () => {
    const shown = await use((disk) => {
      writeCompressed(disk, 0, Buffer.alloc(2 * clusterSize, 3));
      disk.fill(clusterSize / 2, clusterSize / 4, 4);
      disk.disk.writeZeroes(clusterSize, clusterSize, { unmap: true });
      if (name !== "v2") writeCompressed(disk, clusterSize, Buffer.alloc(clusterSize, 5));
    });
    const expected = Buffer.alloc(virtualSize);
    expected.fill(3, 0, clusterSize).fill(4, clusterSize / 2, (clusterSize * 3) / 4);
    if (name !== "v2") expected.fill(5, clusterSize, 2 * clusterSize);
    expectBytes(shown, expected);
  });
});

describe("compressed writes", () => {
  const CLUSTER = 65536;

  it("make zero clusters of zeros where those are looked for", async () => {
    await withDiskFiles(async (files) => {
      const base = files.put("base.raw", Buffer.alloc(8 * CLUSTER, 9));
      const backing = { file: base, format: "raw" } as const;
      for (const [detectZeroes, letters] of [
        ["off", "dDDDdddd"],
        ["on", "dDzDdddd"],
        ["unmap", "dDzDdddd"],
      ] as const) {
        await createImage(files.path(NAME), "qcow2", { backing });
        const bytes = Buffer.alloc(3 * CLUSTER, 1).fill(0, CLUSTER, 2 * CLUSTER);
        const policy = { detectZeroes, copyOnRead: false };
        files.use(NAME, (disk) => writeCompressed(disk, CLUSTER, bytes), { policy });
        await files.expectClean(NAME);
        expect(await files.clusters(NAME, CLUSTER)).toBe(letters);
        const expected = Buffer.alloc(8 * CLUSTER, 9);
        bytes.copy(expected, CLUSTER);
        expectBytes(await files.converted(NAME), expected);
      }
    });
  });

  it("are not for raw and QED images, nor with an external data file", async () => {
    await withDiskFiles(async (files) => {
      await createImage(files.path("disk.raw"), "raw", { size: MIB });
      await createImage(files.path("disk.qed"), "qed", { size: MIB });
      const options = { data_file: files.path("data.raw") };
      await createImage(files.path(NAME), "qcow2", { size: MIB, options });
      for (const name of ["disk.raw", "disk.qed", NAME]) {
        files.use(name, (disk) => {
          expect(codeOf(() => writeCompressed(disk, 0, Buffer.alloc(CLUSTER, 1)))).toBe("ENOTSUP");
          expect(disk.read().every((byte) => byte === 0)).toBe(true);
        });
      }
    });
  });

  it("copy a table that a snapshot shares, and leave the snapshot alone", async () => {
    await withDiskFiles(async (files) => {
      const path = files.path(NAME);
      await createImage(path, "qcow2", { size: MIB });
      await qemuIo(path, "qcow2", ["write -P 1 0 64k", "write -c -P 2 64k 64k"]);
      await run("qemu-img", ["snapshot", "-c", "one", path]);
      files.use(
        NAME,
        (disk) => {
          writeCompressed(disk, 2 * CLUSTER, Buffer.alloc(2 * CLUSTER, 3));
          // What the snapshot shares is allocated.
          for (const cluster of [0, 1]) {
            const bytes = Buffer.alloc(CLUSTER, 4);
            expect(codeOf(() => writeCompressed(disk, cluster * CLUSTER, bytes))).toBe("EIO");
          }
        },
        OFF,
      );
      await files.expectClean(NAME);
      await qemuIo(path, "qcow2", ["read -P 1 0 64k", "read -P 2 64k 64k", "read -P 3 128k 128k"]);
      await run("qemu-img", ["snapshot", "-a", "one", path]);
      await qemuIo(path, "qcow2", ["read -P 1 0 64k", "read -P 2 64k 64k", "read -P 0 128k 896k"]);
    });
  });

  it("share host clusters, as many as the refcount's width can say", async () => {
    const streams = 40;
    for (const [bits, sharing] of [
      [1, 1],
      [2, 3],
      [16, streams],
    ] as const) {
      await withDiskFiles(async (files) => {
        const options = { refcount_bits: bits };
        await createImage(files.path(NAME), "qcow2", { size: 16 * MIB, options });
        const disk = files.open(NAME, OFF);
        const users = new Map<number, number>();
        for (let cluster = 0; cluster < streams; cluster++) {
          writeCompressed(disk, cluster * CLUSTER, Buffer.alloc(CLUSTER, cluster + 1));
          const { hostOffset } = streamAt(disk, cluster * CLUSTER);
          const host = Math.floor(hostOffset / CLUSTER);
          users.set(host, (users.get(host) ?? 0) + 1);
        }
        expect(Math.max(...users.values())).toBe(sharing);
        expect(users.size).toBe(Math.ceil(streams / sharing));
        // One of them goes, and the others stay.
        disk.fill(CLUSTER, CLUSTER, 99);
        disk.disk.flush();
        disk.disk.maintain();
        expect(readDisk(disk.disk, 2 * CLUSTER, 3)).toEqual(Buffer.of(3, 3, 3));
        disk.close();
        await files.expectClean(NAME);
        const reads = [0, 2, streams - 1].map((at) => `read -P ${at + 1} ${at * 64}k 64k`);
        await qemuIo(files.path(NAME), "qcow2", [...reads, "read -P 99 64k 64k"]);
      });
    }
  });

  it("are seen by a thread that has cached what lay at their place before", async () => {
    await withDiskFiles(async (files) => {
      // Then each stream has a cluster of its own.
      await createImage(files.path(NAME), "qcow2", {
        size: 16 * MIB,
        options: { refcount_bits: 1 },
      });
      const disk = files.open(NAME, OFF);
      const other = disk.asOtherThread();
      writeCompressed(disk, 0, Buffer.alloc(CLUSTER, 1));
      const { hostOffset, compressedBytes } = streamAt(disk, 0);
      expect(readDisk(other, 5, 3)).toEqual(Buffer.of(1, 1, 1));
      disk.fill(0, CLUSTER, 2);
      // Its cluster is free when what replaced it is durable.
      disk.disk.flush();
      disk.disk.maintain();
      let isReused = false;
      for (let cluster = 1; cluster < 256 && !isReused; cluster++) {
        const offset = cluster * CLUSTER;
        writeCompressed(disk, offset, Buffer.alloc(CLUSTER, cluster % 200));
        const stream = streamAt(disk, offset);
        isReused = stream.hostOffset === hostOffset && stream.compressedBytes === compressedBytes;
        // What else it reads would take the place of what it has cached.
        if (isReused) expect(readDisk(other, offset + 5, 1)[0]).toBe(cluster % 200);
      }
      expect(isReused).toBe(true);
      disk.close();
      await files.expectClean(NAME);
    });
  });

  it("wait for the disk once for many clusters, and before they refer to them", async () => {
    await withDiskFiles(async (files) => {
      await createImage(files.path(NAME), "qcow2", { size: 16 * MIB });
      const faulty = new FaultyFiles();
      const disk = files.open(NAME, { ...OFF, attachFile: faulty.attach });
      // The dirty bit, a reservation, and the table are there by then.
      writeCompressed(disk, 0, Buffer.alloc(CLUSTER, 1));
      const before = faulty.calls.length;
      writeCompressed(disk, CLUSTER, new Random("barriers").text(32 * CLUSTER));
      const calls = faulty.calls.slice(before);
      const stream = streamAt(disk, CLUSTER).hostOffset;
      const data = calls.findIndex(({ kind, offset }) => kind === "write" && offset === stream);
      const sync = calls.findIndex(({ kind }) => kind === "sync");
      const table = calls.findIndex(({ kind, length }) => kind === "write" && length === 32 * 8);
      expect(data).toBeGreaterThanOrEqual(0);
      expect(sync).toBeGreaterThan(data);
      expect(table).toBeGreaterThan(sync);
      expect(calls.filter(({ kind }) => kind === "sync")).toHaveLength(1);
      disk.close();
      await files.expectClean(NAME);
    });
  });
});

describe("compressed writes on a storage that fails at one call", () => {
  const CLUSTER = 4096;
  const SIZE = 40 * CLUSTER;
  const random = new Random("failing compressed writes");
  const base = random.bytes(SIZE);
  const text = random.text(SIZE);

  /** Each step with what it writes, so that what was acknowledged is known. */
  const STEPS = [
    { kind: "compressed", offset: 0, length: 6 * CLUSTER },
    { kind: "plain", offset: 2 * CLUSTER, length: CLUSTER },
    { kind: "compressed", offset: 20 * CLUSTER, length: 8 * CLUSTER },
    { kind: "flush", offset: 0, length: 0 },
    { kind: "compressed", offset: 39 * CLUSTER, length: CLUSTER },
    { kind: "compressed", offset: 8 * CLUSTER, length: 2 * CLUSTER },
  ] as const;

  const WAYS = [
    { name: "once, without space", outcome: { code: "ENOSPC" }, lasts: false },
    { name: "once, half done", outcome: { code: "EIO", half: true }, lasts: false },
    { name: "from then on", outcome: { code: "EIO", half: true }, lasts: true },
  ] as const;

  /** Runs the steps; returns the disk as far as it is known, and which clusters may be either. */
  function work(disk: WritableDisk): { content: Buffer; unsure: Set<number> } {
    const content = Buffer.from(base);
    const unsure = new Set<number>();
    for (const { kind, offset, length } of STEPS) {
      const bytes = text.subarray(offset, offset + length);
      try {
        if (kind === "flush") disk.disk.flush();
        else if (kind === "plain") disk.write(offset, bytes);
        else writeCompressed(disk, offset, bytes);
        bytes.copy(content, offset);
      } catch (error) {
        if (!(error instanceof TsimgfsError)) throw error;
        for (let at = offset; at < offset + length; at += CLUSTER) unsure.add(at / CLUSTER);
      }
    }
    try {
      disk.close();
    } catch (error) {
      if (!(error instanceof TsimgfsError)) throw error;
    }
    return { content, unsure };
  }

  function expectAllowed(shown: Buffer, { content, unsure }: ReturnType<typeof work>): void {
    for (let cluster = 0; cluster < SIZE / CLUSTER; cluster++) {
      const range = [cluster * CLUSTER, (cluster + 1) * CLUSTER] as const;
      const actual = shown.subarray(...range);
      const allowed = [content.subarray(...range)];
      if (unsure.has(cluster)) allowed.push(base.subarray(...range), text.subarray(...range));
      expect(
        allowed.some((bytes) => bytes.equals(actual)),
        `cluster ${cluster}`,
      ).toBe(true);
    }
  }

  it.each(WAYS)("lose nothing when it fails $name", async ({ outcome, lasts }) => {
    await withDiskFiles(async (files) => {
      const backing = { file: files.put("base.raw", base), format: "raw" } as const;
      const options = { cluster_size: CLUSTER };
      await createImage(files.path("empty.qcow2"), "qcow2", { options, backing });
      const empty = files.bytes("empty.qcow2");
      const session = (faults: FaultyFiles): ReturnType<typeof work> => {
        files.put(NAME, empty);
        return work(files.open(NAME, { ...OFF, attachFile: faults.attach }));
      };
      const dry = new FaultyFiles();
      session(dry);
      const stride = byScale(5, 1);
      for (let n = random.below(stride); n < dry.calls.length; n += stride) {
        const faulty = new FaultyFiles((_, index) =>
          index === n || (lasts && index > n) ? outcome : "works",
        );
        const known = session(faulty);
        await files.check(NAME);
        const shown = files.use(NAME, (disk) => disk.read(), OFF);
        expectAllowed(shown, known);
        await files.expectClean(NAME);
        expectBytes(await files.converted(NAME), shown, `call ${n}, as qemu-img reads it`);
      }
    });
  });
});
