/**
 * Writing to images whose tables are wrong: they are refused, or marked corrupt when that shows; no table
 * is ever overwritten.
 */

import { describe, expect, it } from "vitest";
import { TsimgfsError } from "../../../src/errors.ts";
import { buildQcow2, type Qcow2Image, type Qcow2Options } from "../../support/qcow2-builder.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type DiskFiles, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const NAME = "disk.qcow2";
const CLUSTER = 4096;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const INCOMPATIBLE = 72;
const CORRUPT = 2n;

const bytes = Buffer.alloc(CLUSTER, 0x5a);

const OPTIONS: Qcow2Options = {
  clusterBits: 12,
  virtualSize: 1024 * CLUSTER,
  clusters: {
    0: { kind: "data", bytes },
    1: { kind: "data", bytes },
    2: { kind: "zero-preallocated", bytes },
    600: { kind: "data", bytes },
  },
  snapshots: [{ name: "one", clusters: { 5: { kind: "data", bytes } } }],
};

/** Where the tables of an image are that nobody may write to. */
const TABLES = [
  "l1",
  "refcount table",
  "refcount block 0",
  "l2 0",
  "l2 1",
  "snapshot table",
] as const;

async function withHostile(
  image: Qcow2Image,
  body: (files: DiskFiles) => void | Promise<void>,
): Promise<void> {
  await withDiskFiles(async (files) => {
    files.put(NAME, image.bytes);
    await body(files);
  });
}

const isCorrupt = (files: DiskFiles): boolean =>
  (files.bytes(NAME).readBigUInt64BE(INCOMPATIBLE) & CORRUPT) !== 0n;

/** The error of an action, which must be one of ours. */
function failureOf(action: () => void): TsimgfsError {
  try {
    action();
  } catch (error) {
    if (error instanceof TsimgfsError) return error;
    throw error;
  }
  return expect.fail("nothing was refused");
}

/** Fails unless opening is refused, and nothing is changed by it. */
function expectRefused(files: DiskFiles, code: string, reason: RegExp): void {
  const before = files.bytes(NAME);
  const error = failureOf(() => files.open(NAME).abandon());
  expect(error).toMatchObject({ code, path: files.path(NAME) });
  expect(error.reason).toMatch(reason);
  expectBytes(files.bytes(NAME), before);
}

/**
 * Fails unless a write marks the image corrupt, and nothing is written from then on.
 *
 * @param counts offset of a refcount block that may have changed: clusters were reserved for the write
 */
function expectCorrupted(
  files: DiskFiles,
  write: (disk: WritableDisk) => void,
  reason: RegExp,
  counts?: number,
): void {
  const before = files.bytes(NAME);
  const disk = files.open(NAME);
  try {
    const error = failureOf(() => write(disk));
    expect(error.code).toBe("EIO");
    expect(error.message).toMatch(reason);
    expect(error.message).toMatch(/the image is marked corrupt and not written to any more$/);
    expect(isCorrupt(files)).toBe(true);
    const marked = files.bytes(NAME);
    const changes = [
      () => disk.fill(300 * CLUSTER, 10, 1),
      () => disk.fill(1 * CLUSTER, 10, 1),
      () => disk.disk.writeZeroes(0, CLUSTER, { unmap: true }),
      () => disk.disk.preallocate(300 * CLUSTER, CLUSTER),
      () => disk.disk.resize(CLUSTER),
    ];
    for (const change of changes) expect(failureOf(change).code).toBe("EIO");
    expectBytes(files.bytes(NAME).subarray(0, before.length), marked.subarray(0, before.length));
    // What is intact can be read.
    expectBytes(disk.read(CLUSTER, CLUSTER), bytes);
  } finally {
    disk.close();
  }
  // All but the mark is as before: tables, and data.
  const after = files.bytes(NAME).subarray(0, before.length);
  after.writeBigUInt64BE(before.readBigUInt64BE(INCOMPATIBLE), INCOMPATIBLE);
  if (counts !== undefined) before.copy(after, counts, counts, counts + CLUSTER);
  expectBytes(after, before);
  expectRefused(files, "EACCES", /^is marked corrupt/);
}

describe("an image that is marked corrupt", () => {
  it("is not opened to write to it", async () => {
    const image = buildQcow2({ ...OPTIONS, incompatible: CORRUPT });
    await withHostile(image, (files) => expectRefused(files, "EACCES", /^is marked corrupt/));
  });
});

describe("an L2 table that lies upon other metadata", () => {
  it.each(["l1", "refcount table", "refcount block 0", "snapshot table"] as const)(
    "(%s) is refused at open",
    async (region) => {
      const image = buildQcow2(OPTIONS);
      image.setL1(1, COPIED | BigInt(image.region(region).offset));
      await withHostile(image, (files) => expectRefused(files, "EIO", /lies on other metadata/));
    },
  );

  it.each([
    { first: COPIED, second: COPIED },
    { first: 0n, second: COPIED },
    { first: COPIED, second: 0n },
  ])("(the same table twice: $first, $second) is refused at open", async ({ first, second }) => {
    const image = buildQcow2(OPTIONS);
    const table = BigInt(image.region("l2 0").offset);
    image.setL1(0, first | table).setL1(1, second | table);
    await withHostile(image, (files) => expectRefused(files, "EIO", /lies on other metadata/));
  });

  it("(the same table twice, shared) is copied before it is changed", async () => {
    const image = buildQcow2(OPTIONS);
    const table = image.region("l2 0").offset;
    image.setL1(0, table).setL1(1, table);
    image.setRefcount(table / CLUSTER, 2);
    for (const index of [0, 1, 2]) {
      image.setL2(index, image.getL2(index) & ~COPIED);
      image.setRefcount(image.region(`data ${index}`).offset / CLUSTER, 2);
    }
    await withHostile(image, (files) => {
      files.use(NAME, (disk) => {
        disk.fill(512 * CLUSTER, CLUSTER, 9);
        expectBytes(disk.read(0, CLUSTER), bytes);
        expectBytes(disk.read(512 * CLUSTER, CLUSTER), Buffer.alloc(CLUSTER, 9));
        expectBytes(disk.read(513 * CLUSTER, CLUSTER), bytes);
      });
    });
  });

  it.each(["l1", "refcount table", "snapshot table"] as const)(
    "(%s), if it claims to be shared, marks the image corrupt",
    async (region) => {
      const image = buildQcow2(OPTIONS);
      image.setL1(1, image.region(region).offset);
      await withHostile(image, (files) => {
        expectCorrupted(files, (disk) => disk.fill(700 * CLUSTER, 10, 1), /lies on/);
      });
    },
  );
});

describe("an L2 table at an impossible place", () => {
  it.each([
    { what: "not aligned", entry: COPIED | 0x5200n },
    { what: "above 2^53", entry: COPIED | (1n << 54n) },
  ])("($what) marks the image corrupt", async ({ entry }) => {
    const image = buildQcow2(OPTIONS);
    image.setL1(1, entry);
    await withHostile(image, (files) => {
      expectCorrupted(files, (disk) => disk.fill(700 * CLUSTER, 10, 1), /L2 table offset/);
    });
  });
});

describe("a refcount block at an impossible place", () => {
  it.each([
    {
      what: "not aligned",
      entry: 0x5200n,
      reason: /refcount block offset 0x5200 is not a multiple/,
    },
    { what: "above 2^53", entry: 1n << 62n, reason: /refcount block offset/ },
    { what: "the header", entry: undefined, reason: /lies on other metadata/ },
  ])("($what) is refused at open", async ({ entry, reason }) => {
    const image = buildQcow2(OPTIONS);
    const other = BigInt(image.region("l1").offset);
    image.setRefcountTable(1, entry ?? other);
    await withHostile(image, (files) => expectRefused(files, "EIO", reason));
  });

  it("(another block) is refused at open", async () => {
    const image = buildQcow2(OPTIONS);
    image.setRefcountTable(1, image.region("refcount block 0").offset);
    await withHostile(image, (files) => expectRefused(files, "EIO", /lies on other metadata/));
  });
});

describe("a data cluster that lies upon metadata", () => {
  it.each(TABLES)("(%s) is not written to in place", async (region) => {
    const image = buildQcow2(OPTIONS);
    image.setL2(0, COPIED | BigInt(image.region(region).offset));
    await withHostile(image, (files) => {
      expectCorrupted(files, (disk) => disk.fill(10, 10, 1), /lies on/);
    });
  });

  it("is not written to among others that follow each other", async () => {
    const image = buildQcow2(OPTIONS);
    const l1 = image.region("l1").offset;
    // The cluster before the L1 table, and that.
    image.setL2(0, COPIED | BigInt(l1 - CLUSTER)).setL2(1, COPIED | BigInt(l1));
    await withHostile(image, (files) => {
      const before = files.bytes(NAME);
      const disk = files.open(NAME);
      const error = failureOf(() => disk.fill(0, 2 * CLUSTER, 1));
      disk.close();
      expect(error.message).toMatch(/lies on/);
      expectBytes(files.bytes(NAME).subarray(CLUSTER, before.length), before.subarray(CLUSTER));
    });
  });

  it.each(TABLES)("(%s), as zeros with a place, is not filled", async (region) => {
    const image = buildQcow2(OPTIONS);
    image.setL2(2, COPIED | BigInt(image.region(region).offset) | 1n);
    await withHostile(image, (files) => {
      const counts = image.region("refcount block 0").offset;
      expectCorrupted(files, (disk) => disk.fill(2 * CLUSTER + 10, 10, 1), /lies on/, counts);
    });
  });

  it.each([...TABLES, "header"])(
    "(%s), if it claims to be shared, is not given away",
    async (region) => {
      const image = buildQcow2(OPTIONS);
      const offset = region === "header" ? 0 : image.region(region).offset;
      // Nothing is at offset 0; a compressed cluster may be.
      const entry = region === "header" ? COMPRESSED | 100n : BigInt(offset);
      image.setL2(0, entry);
      await withHostile(image, (files) => {
        const before = files.bytes(NAME).subarray(offset, offset + CLUSTER);
        const disk = files.open(NAME);
        let failures = 0;
        const attempt = (action: () => void): void => {
          try {
            action();
          } catch (error) {
            if (!(error instanceof TsimgfsError)) throw error;
            failures++;
          }
        };
        attempt(() => disk.disk.writeZeroes(0, CLUSTER, { unmap: true }));
        attempt(() => disk.fill(0, CLUSTER, 1));
        attempt(() => disk.disk.flush());
        attempt(() => disk.disk.maintain());
        for (let index = 20; index < 400; index++)
          attempt(() => disk.fill(index * CLUSTER, CLUSTER, 7));
        attempt(() => disk.disk.flush());
        attempt(() => disk.disk.maintain());
        attempt(() => disk.close());
        expect(failures).toBeGreaterThan(0);
        expect(isCorrupt(files)).toBe(true);
        const after = files.bytes(NAME).subarray(offset, offset + CLUSTER);
        // No data is where the table was.
        expect(after.includes(Buffer.alloc(512, 7))).toBe(false);
        if (region === "header") expectBytes(after.subarray(0, 72), before.subarray(0, 72));
      });
    },
  );
});

describe("an image that was found corrupt", () => {
  it("is not written to any more, whatever was to be freed or given back", async () => {
    const image = buildQcow2(OPTIONS);
    image.setL2(0, COPIED | BigInt(image.region("l1").offset));
    await withHostile(image, (files) => {
      const disk = files.open(NAME);
      disk.disk.writeZeroes(600 * CLUSTER, CLUSTER, { unmap: true });
      disk.fill(20 * CLUSTER, CLUSTER, 4);
      disk.disk.flush();
      expect(disk.disk.hasLateWork()).toBe(true);
      expect(failureOf(() => disk.fill(10, 10, 1)).message).toMatch(/lies on/);
      const before = files.bytes(NAME);
      for (const end of [() => disk.disk.flush(), () => disk.disk.maintain(), () => disk.close()]) {
        try {
          end();
        } catch (error) {
          if (!(error instanceof TsimgfsError)) throw error;
        }
      }
      expectBytes(files.bytes(NAME), before);
      expect(before.subarray(image.region("data 600").offset).includes(bytes)).toBe(true);
    });
  });
});

describe("an L2 entry that cannot be right", () => {
  it.each([
    { what: "not aligned", entry: COPIED | 0x5200n, options: OPTIONS },
    { what: "above 2^53", entry: COPIED | (1n << 54n), options: OPTIONS },
    {
      what: "zeros in version 2",
      entry: 1n,
      options: { ...OPTIONS, version: 2, snapshots: [], clusters: { 0: { kind: "data", bytes } } },
    },
    {
      what: "not its own place in a data file",
      entry: COPIED | 0x5000n,
      options: { ...OPTIONS, dataFile: "disk.data", snapshots: [] },
    },
    {
      what: "compressed, with a data file",
      entry: COMPRESSED | 0x5000n,
      options: { ...OPTIONS, dataFile: "disk.data", snapshots: [] },
    },
  ] as const)("($what) fails the write that meets it", async ({ entry, options }) => {
    const image = buildQcow2(options);
    image.setL2(0, entry);
    await withHostile(image, (files) => {
      if (image.dataFile !== undefined) files.put("disk.data", image.dataFile);
      const disk = files.open(NAME);
      try {
        expect(failureOf(() => disk.fill(10, 10, 1)).code).toBe("EIO");
        expect(failureOf(() => disk.fill(0, CLUSTER, 0)).code).toBe("EIO");
      } finally {
        disk.close();
      }
      if (image.header("version") === 3n) expect(isCorrupt(files)).toBe(true);
    });
  });

  it.each([
    { what: "data and zeros at once", entry: undefined, bitmap: 0x1_0000_0001n },
    { what: "data without a place", entry: 0n, bitmap: 1n },
  ])("(sub-clusters: $what) fails the write that meets it", async ({ entry, bitmap }) => {
    const image = buildQcow2({
      clusterBits: 14,
      extendedL2: true,
      clusters: { 0: { kind: "data", bytes: Buffer.alloc(16384, 1) } },
    });
    image.setL2(0, entry ?? image.getL2(0), bitmap);
    await withHostile(image, (files) => {
      const disk = files.open(NAME);
      expect(failureOf(() => disk.fill(10, 10, 1)).code).toBe("EIO");
      disk.close();
      expect(isCorrupt(files)).toBe(true);
    });
  });
});

describe("refcounts that are too low", () => {
  it("are found when a cluster is freed that is free", async () => {
    const image = buildQcow2(OPTIONS);
    // One reference is counted, two are there.
    const shared = image.region("data 0").offset;
    image.setL2(0, shared).setL2(1, shared);
    await withHostile(image, (files) => {
      const disk = files.open(NAME);
      disk.disk.writeZeroes(0, 2 * CLUSTER, { unmap: true });
      disk.disk.flush();
      expect(failureOf(() => disk.disk.maintain()).message).toMatch(/freed, and is free already/);
      disk.close();
      expect(isCorrupt(files)).toBe(true);
    });
  });

  it.each(TABLES)("of %s do not let it be taken for free space", async (region) => {
    const image = buildQcow2(OPTIONS);
    const { offset } = image.region(region);
    image.setRefcount(offset / CLUSTER, 0);
    await withHostile(image, (files) => {
      const before = files.bytes(NAME).subarray(offset, offset + CLUSTER);
      const disk = files.open(NAME);
      expect(failureOf(() => disk.fill(100 * CLUSTER, 10, 1)).message).toMatch(/is free and/);
      disk.close();
      expect(isCorrupt(files)).toBe(true);
      expectBytes(files.bytes(NAME).subarray(offset, offset + CLUSTER), before);
    });
  });
});
