// Images whose check needs more than their own tables: data files, encryption, snapshot tables that no reader accepts.

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineCheck } from "../support/check-engine.ts";
import { looksAlike, qemuCheck } from "../support/check-oracle.ts";
import { COPIED, DamageImage } from "../support/damage-image.ts";
import { createEncryptedImage } from "../support/encrypted-image.ts";
import { buildQcow2 } from "../support/qcow2-builder.ts";
import { EXTENSION_CRYPTO_HEADER } from "../support/qcow2-header-builder.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { LONG } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

const CLUSTER = 65536;
const MiB = 2 ** 20;

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("check-structures");
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Our counts and QEMU's are the same, before and after our repair, which makes the image clean. */
async function expectRepaired(path: string, mode: "leaks" | "all"): Promise<void> {
  const oracle = await qemuCheck(path);
  expect(engineCheck(path).counts).toEqual(oracle.counts);
  expect(oracle.status).not.toBe(0);
  const before = `${path}.before`;
  writeFileSync(before, readFileSync(path));
  expect(engineCheck(path, mode).status).toBe(0);
  const after = await qemuCheck(path);
  expect(after.status, after.stderr).toBe(0);
  expect(await looksAlike(before, path)).not.toBe(false);
}

describe("an image with a data file", () => {
  let path: string;

  beforeAll(async () => {
    path = join(directory, "split.qcow2");
    const options = { data_file: join(directory, "split.data") };
    await createImage(path, "qcow2", { size: 8 * MiB, options });
    await qemuIo(path, "qcow2", ["write -P 1 0 1M", "write -P 2 5M 64k", "write -z 6M 128k"]);
  });

  it("is counted without its data clusters", async () => {
    const oracle = await qemuCheck(path);
    expect(oracle.status).toBe(0);
    expect(engineCheck(path).counts).toEqual(oracle.counts);
  });

  it("has every data cluster COPIED", async () => {
    const image = new DamageImage(readFileSync(path));
    for (const { at, word } of image.dataEntries()) image.setU64(at, word & ~COPIED);
    const leaked = image.clusters();
    image.bytes = Buffer.concat([image.bytes, Buffer.alloc(CLUSTER)]);
    image.setRefcount(leaked, 1);
    const damaged = join(directory, "split-damaged.qcow2");
    writeFileSync(damaged, image.bytes);
    await expectRepaired(damaged, "all");
  });

  it("may not have compressed clusters", async () => {
    const image = new DamageImage(readFileSync(path));
    const [entry] = image.dataEntries();
    if (entry !== undefined) image.setU64(entry.at, 1n << 62n);
    const damaged = join(directory, "split-compressed.qcow2");
    writeFileSync(damaged, image.bytes);
    const oracle = await qemuCheck(damaged);
    expect(oracle.status).toBe(2);
    expect(engineCheck(damaged).counts).toEqual(oracle.counts);
  });
});

describe("an encrypted image", () => {
  it.each(["luks", "aes"])("is checked without its key (%s)", async (method) => {
    const path = join(directory, `${method}.qcow2`);
    const secret = ["--object", "secret,id=key,data=0123456789"];
    const fast = method === "luks" ? ["encrypt.iter-time=100"] : [];
    const options = [`encrypt.format=${method}`, "encrypt.key-secret=key", ...fast];
    await createEncryptedImage(path, options, "4M");
    const source = `driver=qcow2,file.filename=${path},encrypt.key-secret=key`;
    await run("qemu-io", [...secret, "--image-opts", source, "-c", "write -P 1 0 1M"]);
    const args = ["check", "--output", "json", ...secret, "--image-opts", source];
    const { stdout } = await run("qemu-img", args);
    const { counts } = engineCheck(path);
    expect(counts).toMatchObject({ status: 0, leaks: 0, corruptions: 0 });
    expect(JSON.parse(stdout)).toMatchObject({
      "image-end-offset": counts?.imageEndOffset,
      "allocated-clusters": counts?.allocatedClusters,
    });
    // A leak, and a cluster of the LUKS header that is not counted.
    const image = new DamageImage(readFileSync(path));
    image.setRefcount(4, 0);
    image.setRefcount(image.clusters() + 5, 1);
    image.bytes = Buffer.concat([image.bytes, Buffer.alloc(CLUSTER * 6)]);
    writeFileSync(path, image.bytes);
    expect(engineCheck(path).status).toBe(2);
    expect(engineCheck(path, "all").status).toBe(0);
    await run("qemu-img", args);
  });
});

describe("a LUKS header", () => {
  it("that is longer than the image says is not taken for leaked clusters, as by QEMU", async () => {
    const path = join(directory, "short-luks.qcow2");
    const options = ["encrypt.format=luks", "encrypt.key-secret=key", "encrypt.iter-time=10"];
    await createEncryptedImage(path, options, "4M");
    const image = new DamageImage(readFileSync(path));
    const place = image.extensionPlace(EXTENSION_CRYPTO_HEADER) ?? 0;
    // The end of the last slot's key material is in the cluster that is left out.
    image.setU64(place + 8, image.u64(place + 8) - BigInt(CLUSTER));
    writeFileSync(path, image.bytes);
    expect(await qemuCheck(path, "encrypted qcow2")).toMatchObject({ status: 3 });
    for (const mode of [undefined, "leaks", "all"] as const) {
      expect(engineCheck(path, mode)).toMatchObject({ status: 1, counts: undefined });
    }
    expect(readFileSync(path).equals(image.bytes)).toBe(true);
  });
});

describe("a LUKS header that reaches past the end of the file", () => {
  it("is not written over by new refcount structures, though nothing says that it is in use", async () => {
    const path = join(directory, "long-luks.qcow2");
    const own = ["cluster_size=4096", "encrypt.iter-time=10"];
    const options = ["encrypt.format=luks", "encrypt.key-secret=key", ...own];
    await createEncryptedImage(path, options, "4M");
    const image = new DamageImage(readFileSync(path));
    const place = image.extensionPlace(EXTENSION_CRYPTO_HEADER) ?? 0;
    const luks = Number(image.u64(place));
    const keys = image.bytes.subarray(luks, luks + Number(image.u64(place + 8)));
    image.setU64(place + 8, 1n << 40n);
    // As an L2 table, the lost refcount table refers to the blocks: no other cluster looks as free as the keys'.
    const l1 = image.header("l1_table_offset");
    image.setU64(l1, BigInt(image.header("refcount_table_offset")));
    // The header as one, too, refers to every new refcount table: it is built again and again.
    image.setU64(l1 + 8, COPIED);
    image.setHeader("refcount_table_offset", image.clusters() * 4096);
    writeFileSync(path, image.bytes);
    const oracle = await qemuCheck(path, "encrypted qcow2");
    expect(oracle.counts).toMatchObject({ status: 2 });
    expect(engineCheck(path).counts).toEqual(oracle.counts);
    const repaired = engineCheck(path, "all");
    const bytes = readFileSync(path);
    expect(bytes.subarray(luks, luks + keys.length).equals(keys)).toBe(true);
    expect(bytes.length).toBeLessThan(2 * image.bytes.length);
    expect(repaired.counts).toMatchObject({ status: 2 });
    expect((await qemuCheck(path, "encrypted qcow2")).counts).toEqual(repaired.counts);
  });
});

describe("COPIED flags", () => {
  it("are not looked at in L2 tables whose own refcount cannot be read", async () => {
    const path = join(directory, "unreadable.qcow2");
    await createImage(path, "qcow2", { size: MiB, options: { cluster_size: 1024 } });
    await qemuIo(path, "qcow2", ["write 0 4k"]);
    const image = new DamageImage(readFileSync(path));
    // What this entry names is beyond the refcount table: its refcount is known, and 0.
    for (const { at } of image.dataEntries()) image.setU64(at, COPIED | (1n << 40n));
    for (const { at, word } of image.blockEntries()) image.setU64(at, word + 512n);
    writeFileSync(path, image.bytes);
    const oracle = await qemuCheck(path);
    expect(oracle.counts).toMatchObject({ status: 1, corruptions: 5 });
    expect(engineCheck(path).counts).toEqual(oracle.counts);
  });
});

describe("a snapshot table", () => {
  const extra = (size: number): Buffer => Buffer.alloc(size, 0);

  /** An image with snapshots whose extra data has these sizes. */
  function withExtra(version: 2 | 3, sizes: readonly number[]): string {
    const path = join(directory, `snapshots-${version}-${sizes.join("-")}.qcow2`);
    const clusters = { 0: { kind: "data", bytes: Buffer.alloc(CLUSTER, 7) } } as const;
    return buildQcow2({
      version,
      clusters,
      snapshots: sizes.map((size) => ({ extra: extra(size), fields: { vm_state_size: 1234 } })),
    }).write(path);
  }

  it("gets what version 3 requires of its entries", async () => {
    const path = withExtra(3, [0, 24, 8, 16]);
    await expectRepaired(path, "all");
    const { stdout } = await run("qemu-img", ["snapshot", "-l", path]);
    expect(stdout).toMatch(/snapshot-1 +1\.21 KiB/);
    expect(stdout.match(/snapshot-\d/g)).toHaveLength(4);
  });

  it("may be shorter in version 2", async () => {
    const path = withExtra(2, [0, 8]);
    const oracle = await qemuCheck(path);
    expect(oracle.status).toBe(0);
    expect(engineCheck(path).counts).toEqual(oracle.counts);
  });

  it("loses extra data that no reader accepts", async () => {
    const path = withExtra(3, [16, 2000, 24]);
    expect((await qemuCheck(path)).status).toBe(1);
    expect(engineCheck(path)).toMatchObject({ status: 1, counts: undefined });
    expect(engineCheck(path, "leaks").status).toBe(1);
    const repaired = engineCheck(path, "all");
    expect(repaired).toMatchObject({ status: 0, corruptionsFixed: 1 });
    const after = await qemuCheck(path);
    expect(after.status, after.stderr).toBe(0);
    const { stdout } = await run("qemu-img", ["snapshot", "-l", path]);
    expect(stdout.match(/snapshot-\d/g)).toHaveLength(3);
  });

  it.each([1, 80, 81, 511, 512])(
    "may start behind the end of the file, as far as whole sectors go (%i bytes of the last one)",
    async (bytes) => {
      const path = join(directory, `behind-${bytes}.qcow2`);
      await createImage(path, "qcow2", { size: MiB, options: { cluster_size: 512 } });
      const image = new DamageImage(readFileSync(path));
      const end = image.clusters() * 512;
      // Two entries of nothing but zeros: 80 bytes of the cluster behind the one that is cut short.
      image.setHeader("nb_snapshots", 2);
      image.setHeader("snapshots_offset", end + 512);
      image.bytes = Buffer.concat([image.bytes, Buffer.alloc(end + bytes - image.bytes.length, 1)]);
      writeFileSync(path, image.bytes);
      await expectRepaired(path, "all");
    },
  );

  // QEMU reads 65536 entries one by one, several times.
  it.each(LONG ? [65537] : [])(
    "is cut where it has %i entries, more than readers accept",
    async (entries) => {
      const path = withExtra(3, [16, 16]);
      const image = new DamageImage(readFileSync(path));
      image.setHeader("nb_snapshots", entries);
      writeFileSync(path, image.bytes);
      expect((await qemuCheck(path)).status).toBe(1);
      expect(engineCheck(path).status).toBe(1);
      expect(engineCheck(path, "all").status).toBe(0);
      const after = await qemuCheck(path);
      expect(after.status, after.stderr).toBe(0);
      const { stdout } = await run("qemu-img", ["snapshot", "-l", path]);
      expect(stdout.match(/snapshot-\d/g)).toHaveLength(2);
    },
  );
});

describe("bitmaps", () => {
  it("whose granularity QEMU does not know are counted", async () => {
    const path = join(directory, "granularity.qcow2");
    await createImage(path, "qcow2", { size: MiB });
    await run("qemu-img", ["bitmap", "--add", "-g", "2M", path, "one"]);
    const intact = await qemuCheck(path);
    const image = new DamageImage(readFileSync(path));
    const [place = 0] = image.bitmapPlaces();
    // The specification has 0 to 63, QEMU 9 to 31.
    image.bytes.writeUInt8(63, place + 17);
    writeFileSync(path, image.bytes);
    expect((await qemuCheck(path)).status).toBe(1);
    expect(engineCheck(path).counts).toEqual(intact.counts);
  });

  it("whose directory is stale are leaked clusters", async () => {
    const path = join(directory, "stale.qcow2");
    await createImage(path, "qcow2", { size: MiB });
    await run("qemu-img", ["bitmap", "--add", path, "one"]);
    const image = new DamageImage(readFileSync(path));
    image.setHeader("autoclear_features", 0);
    writeFileSync(path, image.bytes);
    await expectRepaired(path, "leaks");
  });

  it("whose table is damaged end the check, as for QEMU", async () => {
    const path = join(directory, "bitmap.qcow2");
    await createImage(path, "qcow2", { size: MiB });
    await run("qemu-img", ["bitmap", "--add", path, "one"]);
    const image = new DamageImage(readFileSync(path));
    // The table through the directory's first entry, and the directory through the header extension.
    const extension = image.bytes.indexOf(Buffer.from([0x23, 0x85, 0x28, 0x75]));
    const directoryOffset = Number(image.u64(extension + 24));
    const table = Number(image.u64(directoryOffset));
    image.setU64(table, 1n << 60n);
    writeFileSync(path, image.bytes);
    expect((await qemuCheck(path)).status).toBe(1);
    expect(engineCheck(path).status).toBe(1);
  });
});
