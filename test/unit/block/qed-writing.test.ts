/** Writing to QED images: the header, the end of the file, clusters that nothing refers to, zeros, and sizes. */

import fs from "node:fs";
import { describe, expect, it } from "vitest";
import { type Errno, TsimgfsError } from "../../../src/errors.ts";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { type Call, FaultyFiles } from "../../support/faulty-files.ts";
import { asRecord } from "../../support/json.ts";
import {
  buildQed,
  QED_FEATURE_NEED_CHECK,
  type QedCluster,
  type QedOptions,
} from "../../support/qed-builder.ts";
import { imageInfo, qemuIo } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type DiskFiles, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const NAME = "disk.qed";
const CLUSTER = 4096;
const SIZE = 40 * CLUSTER - 512;

/** Where header fields are, and their bits. */
const FEATURES = 16;
const COMPATIBLE = 24;
const AUTOCLEAR = 32;
const NEED_CHECK = 2n;

const random = new Random("QED writing");
const content = random.bytes(SIZE);

const data = (index: number): QedCluster => ({
  kind: "data",
  bytes: content.subarray(index * CLUSTER, (index + 1) * CLUSTER),
});

/** Guest clusters 0 and 2 are data, 3 is zeros. */
const CLUSTERS = { 0: data(0), 2: data(2), 3: { kind: "zero" } } as const;

// QEMU takes no tables of one cluster.
const OPTIONS: QedOptions = {
  clusterSize: CLUSTER,
  tableClusters: 2,
  virtualSize: SIZE,
  clusters: CLUSTERS,
};

/** What the disk of `OPTIONS` contains. */
function initialDisk(): Buffer {
  const disk = Buffer.alloc(SIZE);
  for (const index of [0, 2])
    content.copy(disk, index * CLUSTER, index * CLUSTER, (index + 1) * CLUSTER);
  return disk;
}

const u64 = (files: DiskFiles, offset: number): bigint => files.bytes(NAME).readBigUInt64LE(offset);

function failureOf(action: () => unknown): TsimgfsError {
  try {
    action();
  } catch (error) {
    if (error instanceof TsimgfsError) return error;
    throw error;
  }
  return expect.fail("nothing was refused");
}

/** Writes to the image, while it is closed. */
function overwrite(files: DiskFiles, offset: number, bytes: Uint8Array): void {
  const fd = fs.openSync(files.path(NAME), "r+");
  fs.writeSync(fd, bytes, 0, bytes.length, offset);
  fs.closeSync(fd);
}

function entry(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

describe("the header of a QED image that is written to", () => {
  it("has the need-check bit, durably, before the file grows and until all else is done", async () => {
    await withDiskFiles(async (files) => {
      files.put(NAME, buildQed(OPTIONS).bytes);
      const faulty = new FaultyFiles();
      const needsCheck: boolean[] = [];
      faulty.faults = () => {
        needsCheck.push((u64(files, FEATURES) & NEED_CHECK) !== 0n);
        return "works";
      };
      const disk = files.open(NAME, { attachFile: faulty.attach });
      disk.fill(10, 20, 1);
      expect(u64(files, FEATURES), "a write in place").toBe(0n);
      disk.fill(5 * CLUSTER, 20, 1);
      expect(u64(files, FEATURES), "a new cluster").toBe(NEED_CHECK);
      disk.close();
      expect(u64(files, FEATURES), "closed").toBe(0n);

      const { calls } = faulty;
      const isFeatures = (call: Call | undefined): boolean =>
        call?.kind === "write" && call.offset === FEATURES;
      const set = calls.findIndex(isFeatures);
      const cleared = calls.findLastIndex(isFeatures);
      expect(cleared).toBeGreaterThan(set);
      // In one call, within the first sector, and durable before the next change.
      expect(calls[set]).toMatchObject({ offset: FEATURES, length: 8 });
      expect(calls[set + 1]?.kind).toBe("sync");
      expect(calls.findIndex(({ kind }) => kind === "length")).toBeGreaterThan(set);
      // The new length is durable before anything refers to it.
      const grown = calls.findIndex(({ kind }) => kind === "length");
      expect(calls[grown + 1]?.kind).toBe("sync");
      expect(calls.slice(cleared - 1).map(({ kind }) => kind)).toEqual(["sync", "write", "sync"]);
      expect(needsCheck.slice(set + 1, cleared).every(Boolean)).toBe(true);
      await files.expectClean(NAME);
    });
  });

  it("loses unknown autoclear bits before the first change, and nothing else ever", async () => {
    await withDiskFiles(async (files) => {
      const built = buildQed({
        ...OPTIONS,
        header: { autoclear_features: 0x8000_0000_0000_0003n, compat_features: 1n << 63n },
      });
      random.bytes(CLUSTER - 64).copy(built.bytes, 64);
      files.put(NAME, built.bytes);
      const faulty = new FaultyFiles();
      files.use(
        NAME,
        (disk) => {
          disk.read();
          expect(faulty.calls.every(({ kind }) => kind === "sync")).toBe(true);
          faulty.calls.length = 0;
          disk.fill(7, 9, 1);
          const [first, second] = faulty.calls;
          expect(first).toMatchObject({ kind: "write", offset: AUTOCLEAR, length: 8 });
          expect(second?.kind).toBe("sync");
          disk.fill(8 * CLUSTER + 7, 9, 1);
          disk.disk.writeZeroes(0, 9 * CLUSTER, { unmap: true });
        },
        { attachFile: faulty.attach },
      );
      const header = Buffer.from(built.bytes.subarray(0, CLUSTER));
      header.writeBigUInt64LE(0n, AUTOCLEAR);
      expectBytes(files.bytes(NAME).subarray(0, CLUSTER), header);
      expect(u64(files, COMPATIBLE)).toBe(1n << 63n);
      await files.expectClean(NAME);
    });
  });

  it("stays as it is, like all else, when nothing is written", async () => {
    await withDiskFiles(async (files) => {
      const { bytes } = buildQed({ ...OPTIONS, header: { autoclear_features: 1 } });
      const path = files.put(NAME, Buffer.concat([bytes, random.bytes(10_000)]));
      const before = files.bytes(NAME);
      fs.utimesSync(path, 1_000_000, 1_000_000);
      files.use(NAME, (disk) => {
        expectBytes(disk.read(), initialDisk());
        disk.disk.flush();
        disk.disk.maintain();
      });
      expectBytes(files.bytes(NAME), before);
      expect(fs.statSync(path).mtimeMs).toBe(1_000_000_000);
    });
  });
});

describe("the end of the file of a QED image", () => {
  /** Writes a few bytes to cluster 9, and compares all; nothing but zeros may be around them. */
  async function expectNewCluster(files: DiskFiles): Promise<void> {
    const disk = initialDisk();
    disk.fill(0x77, 9 * CLUSTER + 1000, 9 * CLUSTER + 1010);
    files.use(NAME, (writable) => {
      writable.fill(9 * CLUSTER + 1000, 10, 0x77);
      expectBytes(writable.read(), disk);
    });
    expectBytes(await files.converted(NAME), disk);
  }

  it.each([
    { what: "a part of a cluster", length: 1000 },
    { what: "one that lacks a sector", length: CLUSTER - 512 },
    { what: "some clusters, which are leaked", length: 5 * CLUSTER },
    { what: "more than is reserved at first", length: 20_000_000 },
  ])("is where clusters come from, whatever is there: $what", async ({ length }) => {
    await withDiskFiles(async (files) => {
      const { bytes } = buildQed(OPTIONS);
      files.put(NAME, Buffer.concat([bytes, Buffer.alloc(length, 0xee)]));
      await expectNewCluster(files);
      const { size } = fs.statSync(files.path(NAME));
      expect(size).toBe(bytes.length + CLUSTER);
      await files.expectClean(NAME);
    });
  });

  it("is not cut where a feature that nobody knows may have its data", async () => {
    await withDiskFiles(async (files) => {
      const { bytes } = buildQed({ ...OPTIONS, header: { compat_features: 4 } });
      const unknown = random.bytes(3 * CLUSTER);
      files.put(NAME, Buffer.concat([bytes, unknown]));
      await expectNewCluster(files);
      const after = files.bytes(NAME);
      expectBytes(after.subarray(bytes.length, bytes.length + unknown.length), unknown);
      expect(after.length).toBe(bytes.length + unknown.length + CLUSTER);
    });
  });

  it("may lie within a sector, as QEMU counts", async () => {
    await withDiskFiles(async (files) => {
      const built = buildQed({ ...OPTIONS, clusters: { 0: data(0) } });
      // The last cluster is data: what it lacks reads as zeros.
      files.put(NAME, built.truncated(built.bytes.length - 100));
      const disk = Buffer.alloc(SIZE);
      content.copy(disk, 0, 0, CLUSTER - 100);
      files.use(NAME, (writable) => {
        expectBytes(writable.read(), disk);
        writable.fill(CLUSTER - 3, 4, 0x21);
        disk.fill(0x21, CLUSTER - 3, CLUSTER + 1);
        expectBytes(writable.read(), disk);
      });
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), disk);
    });
  });

  it("is that of a block device: it is full there, and stays as long as it is", async () => {
    await withDiskFiles(async (files) => {
      const { bytes } = buildQed(OPTIONS);
      files.put(NAME, Buffer.concat([bytes, random.bytes(3 * CLUSTER)]));
      const disk = initialDisk();
      const { length } = files.bytes(NAME);
      const device = files.open(NAME, {
        attachFile: (file) => new LocalFile({ ...file, resizable: false }),
      });
      for (const index of [7, 20, 11]) {
        device.fill(index * CLUSTER + 5, 6, index);
        disk.fill(index, index * CLUSTER + 5, index * CLUSTER + 11);
      }
      const error = failureOf(() => device.fill(30 * CLUSTER, 10, 1));
      expect(error.code).toBe("ENOSPC");
      expect(error.reason).toMatch(/no free clusters are left on this device/);
      device.fill(7 * CLUSTER, 5, 9);
      disk.fill(9, 7 * CLUSTER, 7 * CLUSTER + 5);
      expectBytes(device.read(), disk);
      device.close();
      expect(files.bytes(NAME).length).toBe(length);
      expect(u64(files, FEATURES)).toBe(0n);
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), disk);
    });
  });
});

describe("clusters of a QED image that nothing refers to, among others", () => {
  it("are used first, and show nothing of what they held", async () => {
    await withDiskFiles(async (files) => {
      const clusters = { ...CLUSTERS, 4: data(4), 5: data(5), 6: data(6) };
      const built = buildQed({ ...OPTIONS, clusters });
      // Two of them have data that belongs to nobody any more.
      files.put(NAME, built.setL2(0, 0).setL2(5, 0).bytes);
      expect((await files.check(NAME)).leaks).toBe(2);
      const disk = initialDisk().fill(0, 0, CLUSTER);
      for (const index of [4, 6])
        content.copy(disk, index * CLUSTER, index * CLUSTER, (index + 1) * CLUSTER);
      files.use(NAME, (writable) => {
        writable.disk.preallocate(12 * CLUSTER + 5, 10);
        expectBytes(writable.read(), disk);
        writable.fill(10 * CLUSTER + 100, 10, 5);
        writable.fill(14 * CLUSTER + 3000, 3 * CLUSTER, 6);
        disk.fill(5, 10 * CLUSTER + 100, 10 * CLUSTER + 110);
        disk.fill(6, 14 * CLUSTER + 3000, 17 * CLUSTER + 3000);
        expectBytes(writable.read(), disk);
      });
      await files.expectClean(NAME);
      expect(files.bytes(NAME).length).toBe(built.bytes.length + 4 * CLUSTER);
      expectBytes(await files.converted(NAME), disk);
    });
  });

  it("are filled with what a backing file has", async () => {
    await withDiskFiles(async (files) => {
      const base = random.bytes(SIZE);
      files.put("base.raw", base);
      const built = buildQed({ ...OPTIONS, backingFile: "base.raw", backingFormat: "raw" });
      files.put(NAME, built.setL2(0, 0).bytes);
      const disk = Buffer.from(base);
      content.copy(disk, 2 * CLUSTER, 2 * CLUSTER, 3 * CLUSTER);
      disk.fill(0, 3 * CLUSTER, 4 * CLUSTER);
      files.use(
        NAME,
        (writable) => {
          writable.fill(8 * CLUSTER + 100, 10, 5);
          disk.fill(5, 8 * CLUSTER + 100, 8 * CLUSTER + 110);
          expectBytes(writable.read(), disk);
        },
        { policy: { copyOnRead: false } },
      );
      await files.expectClean(NAME);
      expect(files.bytes(NAME).length).toBe(built.bytes.length);
      expectBytes(await files.converted(NAME), disk);
    });
  });

  it("are those of a write that failed: the next one has them", async () => {
    await withDiskFiles(async (files) => {
      files.put(NAME, buildQed(OPTIONS).bytes);
      const faulty = new FaultyFiles();
      const disk = initialDisk();
      const writable = files.open(NAME, { attachFile: faulty.attach });
      writable.fill(20 * CLUSTER, CLUSTER, 3);
      disk.fill(3, 20 * CLUSTER, 21 * CLUSTER);
      // Half of the data is written.
      faulty.faults = ({ kind, length }) =>
        kind === "write" && length > 8 ? { code: "ENOSPC", half: true } : "works";
      for (let attempt = 0; attempt < 5; attempt++) {
        expect(failureOf(() => writable.fill(9 * CLUSTER, CLUSTER, 0x99)).code).toBe("ENOSPC");
      }
      faulty.faults = () => "works";
      writable.fill(30 * CLUSTER + 3, 5, 4);
      disk.fill(4, 30 * CLUSTER + 3, 30 * CLUSTER + 8);
      writable.fill(31 * CLUSTER, 2 * CLUSTER, 5);
      disk.fill(5, 31 * CLUSTER, 33 * CLUSTER);
      expectBytes(writable.read(), disk);
      writable.close();
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), disk);
    });
  });

  it("are cut off at the end, if it was the last write that failed", async () => {
    await withDiskFiles(async (files) => {
      const { bytes } = buildQed(OPTIONS);
      files.put(NAME, bytes);
      const faulty = new FaultyFiles();
      const writable = files.open(NAME, { attachFile: faulty.attach });
      writable.fill(20 * CLUSTER, CLUSTER, 3);
      faulty.faults = ({ kind, length }) =>
        kind === "write" && length > 8 ? { code: "ENOSPC", half: true } : "works";
      expect(failureOf(() => writable.fill(9 * CLUSTER, 3 * CLUSTER, 9)).code).toBe("ENOSPC");
      faulty.faults = () => "works";
      writable.close();
      await files.expectClean(NAME);
      expect(files.bytes(NAME).length).toBe(bytes.length + CLUSTER);
    });
  });
});

describe("a QED image that was not closed", () => {
  it("is checked before it is written to, as QEMU does", async () => {
    await withDiskFiles(async (files) => {
      const built = buildQed({ ...OPTIONS, features: QED_FEATURE_NEED_CHECK });
      // An entry past the end of the file, which QEMU can leave behind; and clusters of nobody.
      built.setL2(7, 1000 * CLUSTER);
      files.put(NAME, Buffer.concat([built.bytes, random.bytes(2 * CLUSTER)]));
      const disk = initialDisk();
      const [warning] = files.use(NAME, (writable) => {
        expectBytes(writable.read(), disk);
        writable.fill(7 * CLUSTER + 1, 10, 1);
        disk.fill(1, 7 * CLUSTER + 1, 7 * CLUSTER + 11);
        return writable.chain.warnings;
      });
      expect(warning).toMatch(
        /disk\.qed: warning: was not closed cleanly \(need-check bit\); .*1 entries .* cleared$/,
      );
      expect(u64(files, FEATURES)).toBe(0n);
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), disk);
    });
  });

  it("has no need-check bit any more when nothing was wrong, and nothing written", async () => {
    await withDiskFiles(async (files) => {
      const { bytes } = buildQed({ ...OPTIONS, features: QED_FEATURE_NEED_CHECK });
      files.put(NAME, bytes);
      const [warning] = files.use(NAME, (disk) => disk.chain.warnings);
      expect(warning).toMatch(/it has been checked: nothing is damaged$/);
      bytes.writeUInt8(0, FEATURES);
      expectBytes(files.bytes(NAME), bytes);
    });
  });

  it.each(["EIO", "ENOSPC"] as const)(
    "keeps the need-check bit when the host cannot say what is durable: %s",
    async (code) => {
      await withDiskFiles(async (files) => {
        files.put(NAME, buildQed(OPTIONS).bytes);
        const faulty = new FaultyFiles();
        const disk = initialDisk();
        const writable = files.open(NAME, { attachFile: faulty.attach });
        writable.fill(20 * CLUSTER, CLUSTER, 3);
        disk.fill(3, 20 * CLUSTER, 21 * CLUSTER);
        faulty.faults = ({ kind }) => (kind === "sync" ? { code } : "works");
        expect(failureOf(() => writable.disk.flush()).code).toBe(code);
        faulty.faults = () => "works";
        // Nobody can know any more whether what was written before is durable.
        expect(failureOf(() => writable.disk.flush()).message).toMatch(
          /an earlier fdatasync failed/,
        );
        writable.disk.maintain();
        expect(failureOf(() => writable.close()).code).toBe("EIO");
        expect(u64(files, FEATURES)).toBe(NEED_CHECK);
        await files.check(NAME);
        files.use(NAME, (again) => expectBytes(again.read(), disk));
        await files.expectClean(NAME);
        expectBytes(await files.converted(NAME), disk);
      });
    },
  );
});

describe("a QED image whose tables cannot be right", () => {
  const built = (): ReturnType<typeof buildQed> => buildQed({ ...OPTIONS, headerClusters: 2 });
  const { offset: l1 } = built().region("l1");
  const { offset: l2 } = built().region("l2 0");
  const { offset: data0 } = built().region("data 0");

  it.each([
    { what: "an L2 table that is not aligned", change: () => built().setL1(0, l2 + 512) },
    { what: "an L2 table on the header", change: () => built().setL1(1, CLUSTER) },
    { what: "an L2 table on the L1 table", change: () => built().setL1(1, l1) },
    { what: "an L2 table on a half of another", change: () => built().setL1(1, l2 + CLUSTER) },
    { what: "an L2 table of two entries", change: () => built().setL1(9, l2) },
    { what: "an L2 table past the end", change: () => built().setL1(1, 100 * CLUSTER) },
    { what: "an L2 table past the end in part", change: () => lastCluster(0) },
    { what: "data that is not aligned", change: () => built().setL2(2, data0 + 2048) },
    { what: "data past the end", change: () => lastCluster(1) },
    { what: "data at an offset above 2^53", change: () => built().setL2(2, 1n << 60n) },
    { what: "data on the header", change: () => built().setL2(2, CLUSTER) },
    { what: "data on the L1 table", change: () => built().setL2(2, l1 + CLUSTER) },
    { what: "data on its L2 table", change: () => built().setL2(2, l2) },
    { what: "data of two entries", change: () => built().setL2(2, data0) },
    { what: "data of two entries behind the end", change: () => built().setL2(500, data0) },
    {
      what: "an L1 table on the header",
      change: () => built().setHeader("header_size", 0).setHeader("l1_table_offset", 0),
    },
  ])("is refused before anything is written ($what)", async ({ change }) => {
    await withDiskFiles(async (files) => {
      const { bytes } = change();
      files.put(NAME, bytes);
      const error = failureOf(() => files.open(NAME).abandon());
      expect(error).toMatchObject({ code: "EIO", path: files.path(NAME) });
      expect(error.message).toMatch(/^[^\n]*disk\.qed: .* -r$/);
      expectBytes(files.bytes(NAME), bytes);
    });
  });

  /** An L1 entry (0) or an L2 entry (1) of the first cluster behind the end, less one cluster for a table. */
  function lastCluster(level: 0 | 1): ReturnType<typeof buildQed> {
    const image = built();
    const end = image.bytes.length;
    return level === 0 ? image.setL1(1, end - CLUSTER) : image.setL2(2, end);
  }

  it("is refused if it needs a check that cannot repair it", async () => {
    await withDiskFiles(async (files) => {
      const image = built().setHeader("features", QED_FEATURE_NEED_CHECK).setL2(2, data0);
      files.put(NAME, image.bytes);
      const error = failureOf(() => files.open(NAME).abandon());
      expect(error.code).toBe("EIO");
      expect(error.reason).toMatch(/damaged beyond what a repair can do/);
      expectBytes(files.bytes(NAME), image.bytes);
    });
  });

  it.each([
    { what: "not aligned", value: data0 + 512 },
    { what: "past the end", value: 5000 * CLUSTER },
    { what: "above 2^53", value: (1n << 63n) + 4096n },
    { what: "on the header", value: CLUSTER },
    { what: "on the L1 table", value: l1 },
    { what: "on an L2 table", value: l2 + CLUSTER },
  ])("all of a sudden is not written to any more ($what)", async ({ value }) => {
    await withDiskFiles(async (files) => {
      files.put(NAME, built().setHeader("image_size", 1024 * CLUSTER).bytes);
      const disk = files.open(NAME);
      disk.fill(9 * CLUSTER, CLUSTER, 4);
      // Somebody else changes an entry, of another slice than those that were looked at.
      overwrite(files, l2 + 700 * 8, entry(value));
      const before = files.bytes(NAME);
      const changes = [
        () => disk.fill(700 * CLUSTER + 5, 10, 1),
        () => disk.fill(2 * CLUSTER, 10, 1),
        () => disk.fill(20 * CLUSTER, CLUSTER, 1),
        () => disk.disk.writeZeroes(0, CLUSTER, { unmap: true }),
      ];
      const [first, ...rest] = changes.map((change) => failureOf(change));
      expect(first?.code).toBe("EIO");
      expect(rest.map(({ message }) => message)).toEqual(
        rest.map(() => expect.stringMatching(/it was found corrupt; the image is not written/)),
      );
      disk.close();
      expectBytes(files.bytes(NAME), before);
      expect(u64(files, FEATURES)).toBe(NEED_CHECK);
    });
  });
});

describe("zeros in a QED image", () => {
  const BACKED = { backingFile: "base.raw", backingFormat: "raw" } as const;
  const base = random.bytes(SIZE);

  /** Letters of the first eight clusters after a change, as DiskFiles.clusters; all bytes are compared. */
  async function clustersAfter(
    options: QedOptions,
    change: (disk: WritableDisk, model: Buffer) => void,
  ): Promise<string> {
    return await withDiskFiles(async (files) => {
      files.put("base.raw", base);
      files.put(NAME, buildQed({ ...OPTIONS, ...options }).bytes);
      const model = await files.converted(NAME);
      const policy = { copyOnRead: false };
      files.use(
        NAME,
        (disk) => {
          change(disk, model);
          expectBytes(disk.read(), model);
        },
        { policy },
      );
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), model);
      return (await files.clusters(NAME, CLUSTER)).slice(0, 8);
    });
  }

  it("stay nothing where nothing is", async () => {
    const change = (disk: WritableDisk, model: Buffer): void => {
      disk.fill(CLUSTER, 7 * CLUSTER, 0);
      disk.disk.writeZeroes(0, SIZE, { unmap: true });
      model.fill(0);
    };
    expect(await clustersAfter({}, change)).toBe("D.Dz....");
    expect(await clustersAfter({ clusters: {} }, change)).toBe("........");
  });

  it.each([true, false])("hide a backing file (unmap %s)", async (unmap) => {
    const change = (disk: WritableDisk, model: Buffer): void => {
      disk.disk.writeZeroes(CLUSTER, 4 * CLUSTER + 9, { unmap });
      model.fill(0, CLUSTER, 5 * CLUSTER + 9);
    };
    expect(await clustersAfter(BACKED, change)).toBe("DzDzzDdd");
    expect(await clustersAfter({ ...BACKED, clusters: {} }, change)).toBe("dzzzzDdd");
  });

  it("hide a backing file in all of a disk, up to its end within a cluster", async () => {
    await clustersAfter({ ...BACKED, clusters: {} }, (disk, model) => {
      disk.disk.writeZeroes(0, SIZE, { unmap: true });
      model.fill(0);
    });
    await clustersAfter({ ...BACKED, clusters: {} }, (disk, model) => {
      disk.fill(SIZE - 3 * CLUSTER, 3 * CLUSTER, 0);
      model.fill(0, SIZE - 3 * CLUSTER);
    });
  });

  it("become data again when something is written there", async () => {
    const change = (disk: WritableDisk, model: Buffer): void => {
      disk.fill(3 * CLUSTER + 700, 5, 8);
      model.fill(8, 3 * CLUSTER + 700, 3 * CLUSTER + 705);
    };
    expect(await clustersAfter(BACKED, change)).toBe("DdDDdddd");
  });

  it("give space back where they come in small pieces, in any order", async () => {
    await withDiskFiles(async (files) => {
      const size = 8 * 65536;
      files.put(NAME, buildQed({ virtualSize: size }).bytes);
      const bytes = random.bytes(size);
      files.use(NAME, (disk) => disk.write(0, bytes));
      const full = files.stored(NAME);
      files.use(NAME, (disk) => {
        for (const piece of [3, 0, 15, ...Array.from({ length: 16 }, (_, index) => index)]) {
          for (const cluster of [1, 2, 5]) {
            disk.fill(cluster * 65536 + piece * 4096, 4096, 0);
            bytes.fill(0, cluster * 65536 + piece * 4096, cluster * 65536 + (piece + 1) * 4096);
          }
          expectBytes(disk.read(), bytes);
        }
      });
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), bytes);
      expect(files.stored(NAME)).toBeLessThanOrEqual(full - 3 * 65536);
    });
  });

  it("give space back to the host where data was", async () => {
    await withDiskFiles(async (files) => {
      const size = 4 * 1024 * 1024;
      files.put(NAME, buildQed({ virtualSize: size }).bytes);
      const bytes = random.bytes(size);
      files.use(NAME, (disk) => disk.write(0, bytes));
      expect(files.stored(NAME)).toBeGreaterThanOrEqual(size);
      files.use(NAME, (disk) => {
        disk.disk.writeZeroes(65536, size - 2 * 65536, { unmap: true });
        bytes.fill(0, 65536, size - 65536);
        expectBytes(disk.read(), bytes);
      });
      expect(files.stored(NAME)).toBeLessThan(size / 4);
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), bytes);
    });
  });
});

describe("the size of a QED disk", () => {
  const GROWABLE = { policy: { growable: true } } as const;
  const sizeOf = async (files: DiskFiles): Promise<unknown> =>
    asRecord(await imageInfo([files.path(NAME)]))["virtual-size"];

  it.each([
    { what: "within its last cluster", size: SIZE + 512 },
    { what: "by less than a sector", size: SIZE + 1 },
    { what: "to the end of the L2 table", size: 1024 * CLUSTER },
    { what: "into other L2 tables", size: 3000 * CLUSTER + 512 },
  ])("grows $what: what is new is zeros, and can be written to", async ({ size }) => {
    await withDiskFiles(async (files) => {
      const rounded = Math.ceil(size / 512) * 512;
      const model = Buffer.alloc(rounded);
      initialDisk().copy(model);
      const image = buildQed({ ...OPTIONS, clusters: { ...CLUSTERS, 39: data(39) } });
      content.copy(model, 39 * CLUSTER, 39 * CLUSTER);
      // What the last cluster has behind the end of the disk must not show.
      image.bytes.fill(0xee, image.region("data 39").offset + CLUSTER - 512);
      files.put(NAME, image.bytes);
      files.use(
        NAME,
        (disk) => {
          disk.disk.resize(size);
          expect(disk.disk.currentSize()).toBe(rounded);
          expectBytes(disk.read(), model);
          disk.fill(rounded - 300, 300, 5);
          model.fill(5, rounded - 300);
          expectBytes(disk.read(), model);
        },
        GROWABLE,
      );
      await files.expectClean(NAME);
      expect(await sizeOf(files)).toBe(rounded);
      expectBytes(await files.converted(NAME), model);
    });
  });

  it("grows over a longer backing file, which does not show", async () => {
    await withDiskFiles(async (files) => {
      const base = random.bytes(1200 * CLUSTER);
      files.put("base.raw", base);
      const backing = { backingFile: "base.raw", backingFormat: "raw" } as const;
      files.put(NAME, buildQed({ ...OPTIONS, ...backing, clusters: {} }).bytes);
      const model = Buffer.alloc(1500 * CLUSTER);
      base.copy(model, 0, 0, SIZE);
      files.use(
        NAME,
        (disk) => {
          disk.disk.resize(100 * CLUSTER + 512);
          expectBytes(disk.read(), model.subarray(0, 100 * CLUSTER + 512));
          disk.disk.resize(model.length);
          expectBytes(disk.read(), model);
        },
        GROWABLE,
      );
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), model);
    });
  });

  it("grows as far as its tables map, and no further", async () => {
    await withDiskFiles(async (files) => {
      // 1024 entries of 1024 clusters.
      const limit = 1024 ** 2 * CLUSTER;
      files.put(NAME, buildQed(OPTIONS).bytes);
      files.use(
        NAME,
        (disk) => {
          const error = failureOf(() => disk.disk.resize(limit + 1));
          expect(error.code).toBe("EFBIG");
          expect(error.reason).toMatch(/more than its tables map, 4294967296 bytes/);
          expect(disk.disk.currentSize()).toBe(SIZE);
          disk.disk.resize(limit);
          disk.fill(limit - 1000, 1000, 0x5a);
          disk.fill(limit / 2 - 5, 10, 0x5b);
        },
        GROWABLE,
      );
      await files.expectClean(NAME);
      expect(await sizeOf(files)).toBe(limit);
      const { stdout } = await qemuIo(files.path(NAME), "qed", [
        `read -P 0x5a ${limit - 1000} 1000`,
        `read -P 0x5b ${limit / 2 - 5} 10`,
        `read -P 0 ${limit / 2 + 5} 1M`,
      ]);
      expect(stdout).not.toMatch(/verification failed/);
    });
  });

  it.each([SIZE - 1, SIZE - 512, CLUSTER, 0])("does not shrink (to %i)", async (size) => {
    await withDiskFiles(async (files) => {
      const { bytes } = buildQed({ ...OPTIONS, header: { autoclear_features: 8 } });
      files.put(NAME, bytes);
      files.use(
        NAME,
        (disk) => {
          const rounded = Math.ceil(size / 512) * 512;
          if (rounded === SIZE) {
            disk.disk.resize(size);
            return;
          }
          const error = failureOf(() => disk.disk.resize(size));
          const code: Errno = "ENOTSUP";
          expect(error.code).toBe(code);
          expect(error.reason).toMatch(/QED image, which cannot shrink/);
          expectBytes(files.bytes(NAME), bytes);
          expectBytes(disk.read(), initialDisk());
        },
        GROWABLE,
      );
    });
  });

  it.each([
    { what: "in the last table", cluster: 41 },
    { what: "in a table of its own", cluster: 5000 },
  ])(
    "does not grow over clusters that somebody left behind its end, $what",
    async ({ cluster }) => {
      await withDiskFiles(async (files) => {
        const hidden = { ...CLUSTERS, [cluster]: data(7) };
        const { bytes } = buildQed({ ...OPTIONS, clusters: hidden });
        files.put(NAME, bytes);
        files.use(
          NAME,
          (disk) => {
            const error = failureOf(() => disk.disk.resize(6000 * CLUSTER));
            expect(error.code).toBe("EIO");
            expect(error.reason).toMatch(/clusters behind the end of its disk/);
            expectBytes(disk.read(), initialDisk());
          },
          GROWABLE,
        );
        expectBytes(files.bytes(NAME), bytes);
      });
    },
  );
});
