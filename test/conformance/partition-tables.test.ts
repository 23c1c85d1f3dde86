// Partition tables that sfdisk and fdisk make: the same partitions as they print, also when a copy is damaged.

import { open, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { PartitionTable } from "../../src/block/partitions/partition-entry.ts";
import { readPartitionTable } from "../../src/block/partitions/partition-table.ts";
import { asArray, asRecord, numberIn } from "../support/json.ts";
import { Random } from "../support/random.ts";
import { run, runJson } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { diskOf } from "../unit/block/partitions/sample-disk.ts";

const MIB = 2 ** 20;
const SIZE = 64 * MIB;

const SCRIPTS = {
  "GPT with names and gaps": [
    "label: gpt",
    'size=4M, name="boot ü 𝄞", type=U',
    "size=8M",
    "start=100000, size=2M, type=S",
    "",
  ].join("\n"),
  "GPT, empty": "label: gpt\n",
  "GPT with 60 partitions": ["label: gpt", ...Array(60).fill("size=64K"), ""].join("\n"),
  "DOS, four primary ones": "label: dos\n4M,4M,L,*\n,4M,7\n,4M,S\n,,\n",
  "DOS with logical ones": "label: dos\n,8M,L\n,40M,E\n,4M,L\n,4M,S\n,4M,L\n,4M,7\n,2M,c\n",
  "DOS, empty": "label: dos\n",
} as const;

/** Partitions as sfdisk prints them, without those that only hold others. */
async function sfdiskPartitions(path: string): Promise<unknown[]> {
  const table = asRecord(asRecord(await runJson("sfdisk", ["--json", path]))["partitiontable"]);
  return asArray(table["partitions"] ?? [])
    .map(asRecord)
    .filter(({ type }) => !["5", "f", "85"].includes(String(type)))
    .map((partition) => ({
      number: Number(/(\d+)$/.exec(String(partition["node"]))?.[1]),
      start: numberIn(partition, "start") * 512,
      size: numberIn(partition, "size") * 512,
    }));
}

async function ourTable(path: string): Promise<PartitionTable> {
  return readPartitionTable(diskOf(await readFile(path)));
}

const windows = ({ partitions }: PartitionTable): unknown[] =>
  partitions.map(({ number, start, size }) => ({ number, start, size }));

/** Makes both CRCs of the first copy right, as far as its fields lie within the disk. */
function sealGpt(disk: Buffer): void {
  const at = disk.readUInt32LE(512 + 72) * 512;
  const size = disk.readUInt32LE(512 + 80) * disk.readUInt32LE(512 + 84);
  const array = disk.subarray(at, at + Math.min(size, disk.length));
  disk.writeUInt32LE(crc32(array), 512 + 88);
  disk.writeUInt32LE(0, 512 + 16);
  const headerSize = Math.min(disk.readUInt32LE(512 + 12), 512);
  disk.writeUInt32LE(crc32(disk.subarray(512, 512 + headerSize)), 512 + 16);
}

describe("partition tables", () => {
  let directory = "";

  beforeAll(async () => {
    directory = await makeScratch("partition-tables");
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  async function makeDisk(name: string, script: string): Promise<string> {
    const path = join(directory, name);
    await writeFile(path, "");
    await truncate(path, SIZE);
    await run("sfdisk", ["--quiet", path], { input: script });
    return path;
  }

  /** Flips a byte. */
  async function damage(path: string, offset: number): Promise<void> {
    const file = await open(path, "r+");
    try {
      const { buffer } = await file.read(Buffer.alloc(1), 0, 1, offset);
      buffer[0] = (buffer[0] ?? 0) ^ 0x5a;
      await file.write(buffer, 0, 1, offset);
    } finally {
      await file.close();
    }
  }

  it.each(Object.entries(SCRIPTS))("are read as sfdisk reads them: %s", async (name, script) => {
    const path = await makeDisk("sfdisk.img", script);
    const table = await ourTable(path);
    expect(windows(table)).toEqual(await sfdiskPartitions(path));
    expect(table.kind).toBe(name.startsWith("GPT") ? "gpt" : "dos");
  });

  it("give types, GUIDs and names as sfdisk does", async () => {
    const path = await makeDisk("names.img", SCRIPTS["GPT with names and gaps"]);
    for (const { number, type, uuid, name } of (await ourTable(path)).partitions) {
      const ask = async (what: string): Promise<string> =>
        (await run("sfdisk", [what, path, String(number)])).stdout.trimEnd();
      expect(type).toBe(await ask("--part-type"));
      expect(uuid).toBe((await ask("--part-uuid")).toLowerCase());
      expect(name).toBe(await ask("--part-label"));
    }
  });

  it.each([
    ["the header", 512 + 60],
    ["the array", 1024 + 40],
    ["the signature", 512],
  ])("fall back to the copy at the end: %s is damaged", async (_, offset) => {
    const path = await makeDisk("damaged.img", SCRIPTS["GPT with names and gaps"]);
    const whole = await ourTable(path);
    await damage(path, offset);
    const table = await ourTable(path);
    expect(table.kind).toBe("gpt-backup");
    expect(table.partitions).toEqual(whole.partitions);
    await damage(path, SIZE - 512 + 60);
    expect(await ourTable(path)).toMatchObject({ kind: "gpt-damaged", partitions: [] });
  });

  it("are found on disks that have grown, whose copy is not at the end", async () => {
    const path = await makeDisk("grown.img", SCRIPTS["GPT with names and gaps"]);
    const whole = await ourTable(path);
    await truncate(path, SIZE + 10 * MIB);
    expect((await ourTable(path)).partitions).toEqual(whole.partitions);
    await damage(path, 1024 + 40);
    expect(await ourTable(path)).toEqual({ ...whole, kind: "gpt-backup" });
  });

  it("leave out what a disk that was cut off does not have", async () => {
    const path = await makeDisk("cut.img", SCRIPTS["GPT with names and gaps"]);
    const whole = await ourTable(path);
    await truncate(path, 14 * MIB);
    expect((await ourTable(path)).partitions).toEqual(whole.partitions.slice(0, 2));
  });

  it("may count in sectors of 4096 bytes", async () => {
    const path = join(directory, "4k.img");
    await writeFile(path, "");
    await truncate(path, SIZE);
    await run("fdisk", ["-b", "4096", path], { input: "g\nn\n1\n\n+8M\nn\n5\n\n\nw\n" });
    const { stdout } = await run("fdisk", ["-b", "4096", "-l", "-o", "Start,Sectors", path]);
    const lines = stdout.trimEnd().split("\n").slice(-2);
    const wanted = lines.map((line, index) => {
      const [start = 0, count = 0] = line.trim().split(/\s+/).map(Number);
      return { number: index === 0 ? 1 : 5, start: start * 4096, size: count * 4096 };
    });
    const table = await ourTable(path);
    expect(table).toMatchObject({ kind: "gpt", sectorSize: 4096 });
    expect(windows(table)).toEqual(wanted);
    await damage(path, 4096 + 60);
    expect(await ourTable(path)).toEqual({ ...table, kind: "gpt-backup" });
  });

  it("never name a range outside the disk: bytes damaged at random, CRCs made right", async () => {
    const random = new Random("hostile GPT");
    const path = await makeDisk("hostile.img", SCRIPTS["GPT with names and gaps"]);
    const sample = await readFile(path);
    for (let round = 0; round < 300; round++) {
      const disk = Buffer.from(sample.subarray(0, 64 * 1024));
      for (let flips = 1 + random.below(8); flips > 0; flips--) {
        const at = random.below(4) === 0 ? 512 + random.below(92) : 1024 + random.below(512);
        disk[at] = random.below(256);
      }
      sealGpt(disk);
      for (const { start, size } of readPartitionTable(diskOf(disk)).partitions) {
        expect(start >= 0 && size > 0 && start + size <= disk.length).toBe(true);
      }
    }
  });
});
