/** What writing does to the header of an image, and that an image nobody writes to stays as it is. */

import fs from "node:fs";
import { describe, expect, it } from "vitest";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { readBitmaps } from "../../support/bitmap-reader.ts";
import { type Call, FaultyFiles } from "../../support/faulty-files.ts";
import { buildQcow2, type Qcow2Image } from "../../support/qcow2-builder.ts";
import { featureNameTable } from "../../support/qcow2-header-builder.ts";
import { Random } from "../../support/random.ts";
import { run } from "../../support/run.ts";
import { expectBytes } from "../expect-bytes.ts";
import { withDiskFiles } from "./writable-disk.ts";

const NAME = "disk.qcow2";
const INCOMPATIBLE = 72;
const AUTOCLEAR = 88;

/** An image with fields, extensions and feature bits that nobody knows. */
function strangeImage(clusterBits: number, autoclear: bigint): Qcow2Image {
  const random = new Random("strange header");
  const built = buildQcow2({
    clusterBits,
    virtualSize: 100 * 512,
    headerLength: 136,
    extensions: [
      { type: 0x1122_3344, data: random.bytes(21) },
      featureNameTable([{ kind: 1, bit: 40, name: "something new" }]),
      { type: 0x5566_7788, data: "" },
    ],
    clusters: { 0: { kind: "data", bytes: random.bytes(2 ** clusterBits) }, 2: { kind: "zero" } },
    header: { compatible_features: 0x8000_0100_0000_0000n, autoclear_features: autoclear },
  });
  random.bytes(24).copy(built.bytes, 112);
  return built;
}

const headerOf = (bytes: Buffer, clusterBits: number): Buffer =>
  bytes.subarray(0, 2 ** clusterBits);

describe.each([9, 12, 16])("the header of an image with clusters of 2^%i", (clusterBits) => {
  it.each([
    { autoclear: 0n, kept: 0n },
    { autoclear: 1n << 40n, kept: 0n },
    { autoclear: 0xffff_ffff_ffff_fffcn, kept: 0n },
  ])("loses only unknown autoclear bits ($autoclear)", async ({ autoclear, kept }) => {
    await withDiskFiles(async (files) => {
      const { bytes } = strangeImage(clusterBits, autoclear);
      files.put(NAME, bytes);
      files.use(NAME, (disk) => {
        disk.fill(700, 30_000, 1);
        disk.disk.writeZeroes(3000, 20_000, { unmap: true });
        disk.disk.flush();
      });
      const expected = Buffer.from(headerOf(bytes, clusterBits));
      expected.writeBigUInt64BE(kept, AUTOCLEAR);
      expectBytes(headerOf(files.bytes(NAME), clusterBits), expected);
      await files.expectClean(NAME);
    });
  });

  it("stays as it is, like all else, when nothing is written", async () => {
    await withDiskFiles(async (files) => {
      const { bytes } = strangeImage(clusterBits, (1n << 40n) | 1n);
      const path = files.put(NAME, bytes);
      fs.utimesSync(path, 1_000_000, 1_000_000);
      const faulty = new FaultyFiles();
      const body = (): void =>
        files.use(
          NAME,
          (disk) => {
            disk.read();
            disk.disk.seek(0, "hole");
            disk.disk.flush();
            disk.disk.maintain();
            expect(disk.disk.hasLateWork()).toBe(false);
          },
          { attachFile: faulty.attach, policy: { growable: true } },
        );
      body();
      expect(faulty.calls.filter(({ kind }) => kind !== "sync")).toEqual([]);
      expectBytes(files.bytes(NAME), bytes);
      expect(fs.statSync(path).mtimeMs).toBe(1_000_000_000);
    });
  });
});

describe("the first write to an image", () => {
  const autoclear = (1n << 50n) | 1n;

  it.each([
    { what: "bytes in place", write: 100, length: 50 },
    { what: "bytes elsewhere", write: 20_000, length: 1000 },
  ])("of $what comes after the bits are durably cleared", async ({ write, length }) => {
    await withDiskFiles(async (files) => {
      files.put(NAME, strangeImage(12, autoclear).bytes);
      const faulty = new FaultyFiles();
      files.use(NAME, (disk) => disk.fill(write, length, 9), { attachFile: faulty.attach });
      const [first, second] = faulty.calls;
      expect(first).toMatchObject({ kind: "write" });
      const covers = ({ offset, length: count }: Call): boolean =>
        offset <= AUTOCLEAR && AUTOCLEAR + 8 <= offset + count && offset >= INCOMPATIBLE;
      expect(first !== undefined && covers(first)).toBe(true);
      expect(second?.kind).toBe("sync");
    });
  });

  it("of no bytes, and of zeros where zeros are, does no harm", async () => {
    await withDiskFiles(async (files) => {
      const { bytes } = strangeImage(12, 0n);
      files.put(NAME, bytes);
      files.use(NAME, (disk) => {
        disk.fill(0, 0, 0);
        disk.fill(2 * 4096, 4096, 0);
        disk.disk.writeZeroes(2 * 4096 + 7, 100, { unmap: true });
        disk.fill(5 * 4096 + 1, 10_000, 0);
      });
      expectBytes(files.bytes(NAME), bytes);
    });
  });

  it.each(["EIO", "ENOSPC"] as const)(
    "keeps the dirty bit when the host cannot say what is durable: %s",
    async (code) => {
      await withDiskFiles(async (files) => {
        files.put(NAME, strangeImage(12, 0n).bytes);
        const faulty = new FaultyFiles();
        const writable = files.open(NAME, { attachFile: faulty.attach });
        writable.fill(20_000, 9000, 3);
        const wanted = writable.read();
        faulty.faults = ({ kind }) => (kind === "sync" ? { code } : "works");
        expect(() => writable.disk.flush()).toThrow(expect.objectContaining({ code }));
        faulty.faults = () => "works";
        // Room that was made since does not bring back what the host has dropped.
        expect(() => writable.disk.flush()).toThrow(/an earlier fdatasync failed/);
        writable.disk.maintain();
        expect(() => writable.close()).toThrow(expect.objectContaining({ code: "EIO" }));
        expect(files.bytes(NAME).readBigUInt64BE(INCOMPATIBLE)).toBe(1n);
        await files.check(NAME);
        files.use(NAME, (again) => expectBytes(again.read(), wanted));
        await files.expectClean(NAME);
        expectBytes(await files.converted(NAME), wanted);
      });
    },
  );

  it("sets the dirty bit, which the end clears", async () => {
    await withDiskFiles(async (files) => {
      files.put(NAME, strangeImage(12, 0n).bytes);
      const dirty = (): bigint => files.bytes(NAME).readBigUInt64BE(INCOMPATIBLE) & 1n;
      const disk = files.open(NAME);
      try {
        disk.fill(0, 10, 1);
        expect(dirty(), "a write in place").toBe(0n);
        disk.fill(5 * 4096, 10, 1);
        expect(dirty(), "a new cluster").toBe(1n);
      } finally {
        disk.close();
      }
      expect(dirty()).toBe(0n);
      await files.expectClean(NAME);
    });
  });
});

describe("persistent bitmaps", () => {
  it("are not touched before something is written, and have it then", async () => {
    await withDiskFiles(async (files) => {
      const path = files.path(NAME);
      await run("qemu-img", ["create", "-q", "-f", "qcow2", path, "4M"]);
      await run("qemu-img", ["bitmap", "--add", path, "seen"]);
      const before = files.bytes(NAME);
      files.use(NAME, (disk) => {
        disk.read(0, 4096);
        expect(disk.chain.warnings).toEqual([]);
      });
      expectBytes(files.bytes(NAME), before);
      files.use(NAME, (disk) => disk.fill(100, 5, 2));
      expect(await readBitmaps(path)).toMatchObject([{ name: "seen", inUse: false, set: [0] }]);
      await files.expectClean(NAME);
      files.use(NAME, (disk) => disk.fill(3 * 65536, 200_000, 3));
      const set = [0, 3, 4, 5, 6];
      expect(await readBitmaps(path)).toMatchObject([{ name: "seen", inUse: false, set }]);
      await files.expectClean(NAME);
    });
  });
});

describe("LocalFile under a disk", () => {
  it("is closed by nobody but the one that opened it", async () => {
    await withDiskFiles(async (files) => {
      files.put(NAME, strangeImage(12, 0n).bytes);
      files.use(NAME, (disk) => {
        const [layer] = disk.chain.layers;
        if (layer === undefined) throw new Error("no image");
        disk.disk.close();
        expect(new LocalFile(layer.file).currentLength()).toBeGreaterThan(0);
      });
    });
  });
});
