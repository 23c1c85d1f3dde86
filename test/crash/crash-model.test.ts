/** The tools of the crash tests, before they judge anything: files in memory, states, and what is allowed. */

import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { DiskModel, findForbidden, SECTOR_SIZE } from "../support/disk-model.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { withScratch } from "../support/scratch.ts";

const SIZE = 100_000;
/** Changes at the end of a log that no sync follows. */
const UNSYNCED = 18;

function nativeBytes(bytes: Uint8Array): NativeBuffer {
  const buffer = NativeBuffer.allocate(bytes.length);
  buffer.bytes.set(bytes);
  return buffer;
}

/**
 * A file in memory, its log, and the same content as plain bytes, after random changes.
 *
 * @param unsynced so many changes at the end are not followed by a sync
 */
function randomChanges(
  random: Random,
  count: number,
  unsynced = 0,
): { log: RecordingLog; contents: Buffer[] } {
  const log: RecordingLog = { operations: [] };
  const storage = new RecordingStorage("file", SparseFile.empty(SIZE), log, 0);
  let bytes = Buffer.alloc(SIZE);
  const contents: Buffer[] = [bytes];
  for (let step = 0; step < count; step++) {
    const offset = random.below(SIZE);
    const length = random.between(1, 9000);
    switch (random.below(step < count - unsynced ? 5 : 4)) {
      case 0:
      case 1: {
        const data = random.bytes(length);
        storage.writeAt(nativeBytes(data), 0, length, offset);
        const grown = Buffer.alloc(Math.max(bytes.length, offset + length));
        bytes.copy(grown);
        data.copy(grown, offset);
        bytes = grown;
        break;
      }
      case 2: {
        const before = log.operations.length;
        storage.zeroAt(offset, length, "release");
        if (log.operations.length === before) continue;
        bytes = Buffer.from(bytes);
        bytes.fill(0, Math.min(offset, bytes.length), Math.min(offset + length, bytes.length));
        break;
      }
      case 3: {
        const cut = random.between(SIZE / 2, SIZE * 1.5);
        storage.setLength(cut);
        const changed = Buffer.alloc(cut);
        bytes.copy(changed);
        bytes = changed;
        break;
      }
      default:
        storage.sync();
    }
    contents.push(bytes);
  }
  expect(storage.content.bytesAt(0, storage.content.length).equals(bytes)).toBe(true);
  return { log, contents };
}

describe("a sparse file in memory", () => {
  it("has what was written, and its copies have what they had", () => {
    const { log, contents } = randomChanges(new Random("sparse file"), 300);
    const states = new CrashStates([SparseFile.empty(SIZE)], log);
    contents.forEach((bytes, position) => {
      const [file] = states.prefix(position);
      expect(file?.bytesAt(0, file.length).equals(bytes), `position ${position}`).toBe(true);
    });
  });

  it("keeps its holes when it is saved, and its content when it is loaded", async () => {
    await withScratch("sparse-file", async (directory) => {
      const path = join(directory, "file");
      const file = SparseFile.empty(3_000_000);
      file.write(2_000_001, Buffer.from("some bytes"));
      file.save(path);
      expect(statSync(path).size).toBe(3_000_000);
      expect(statSync(path).blocks).toBeLessThan(64);
      const loaded = SparseFile.load(path);
      expect(loaded.allocated).toBe(4096);
      expect(loaded.bytesAt(0, loaded.length).equals(readFileSync(path))).toBe(true);
      const part = SparseFile.loadPart(path, 1_998_848, 8192);
      expect(part.bytesAt(1153, 10).toString()).toBe("some bytes");
      expect(part.length).toBe(8192);
      expect(loaded.equals(file)).toBe(true);
      file.write(0, Buffer.alloc(1));
      expect(loaded.equals(file)).toBe(true);
      file.write(0, Buffer.alloc(1, 1));
      expect(loaded.equals(file)).toBe(false);
    });
  });

  it("says where its holes are", () => {
    const log: RecordingLog = { operations: [] };
    const file = SparseFile.empty(40_000);
    file.write(8192, Buffer.alloc(4097, 1));
    const storage = new RecordingStorage("file", file, log, 0);
    const run = { isData: true, length: 0 };
    const runAt = (offset: number): [boolean, number] => {
      storage.hostRun(offset, run);
      return [run.isData, run.length];
    };
    expect(runAt(100)).toEqual([false, 8092]);
    expect(runAt(8200)).toEqual([true, 8184]);
    expect(runAt(16384)).toEqual([false, Number.MAX_SAFE_INTEGER - 16384]);
  });
});

describe("states after a crash", () => {
  it.each(STRATEGIES)("have what was synced, and of the rest nothing else: %s", (strategy) => {
    const random = new Random(`states ${strategy}`);
    const { log, contents } = randomChanges(random, 60, UNSYNCED);
    const states = new CrashStates([SparseFile.empty(SIZE)], log);
    const last = log.operations.length;
    let different = 0;
    for (let round = 0; round < 25; round++) {
      // Half are where much can be lost, so that some of it is.
      const position = random.between(round % 2 === 0 ? 0 : last - UNSYNCED / 3, last);
      const lastSync = log.operations.findLastIndex(
        ({ kind }, at) => kind === "sync" && at < position,
      );
      const history = contents.slice(lastSync + 1, position + 1);
      const [file] = states.random(position, strategy, random);
      const actual = file?.bytesAt(0, 2 * SIZE) ?? Buffer.alloc(0);
      if (!actual.subarray(0, file?.length).equals(history.at(-1) ?? actual)) different++;
      for (let offset = 0; offset < 2 * SIZE; offset += SECTOR_SIZE) {
        const sector = actual.subarray(offset, offset + SECTOR_SIZE);
        const versions = history.map((bytes) => paddedSector(bytes, offset));
        // What lies behind a length that was lost is lost too.
        versions.push(Buffer.alloc(SECTOR_SIZE));
        const isOne = versions.some((version) => version.equals(sector));
        const isMixed = sector.every((byte, at) => versions.some((each) => each[at] === byte));
        expect(isOne || isMixed, `round ${round}, offset ${offset}`).toBe(true);
      }
    }
    expect(different).toBeGreaterThan(3);
  });

  it("lose what one file had not synced, whatever the other did", () => {
    const log: RecordingLog = { operations: [] };
    const image = new RecordingStorage("image", SparseFile.empty(512), log, 0);
    const data = new RecordingStorage("data", SparseFile.empty(512), log, 1);
    const ones = nativeBytes(Buffer.alloc(512, 1));
    data.writeAt(ones, 0, 512, 0);
    image.writeAt(ones, 0, 512, 0);
    image.sync();
    const states = new CrashStates([SparseFile.empty(512), SparseFile.empty(512)], log);
    const random = new Random("two files");
    const seen = new Set<string>();
    for (let round = 0; round < 100; round++) {
      const files = states.random(3, "operations", random);
      seen.add(files.map((file) => file.bytesAt(0, 1).toString("hex")).join(" "));
    }
    expect([...seen].sort()).toEqual(["01 00", "01 01"]);
  });
});

function paddedSector(bytes: Buffer, offset: number): Buffer {
  const sector = Buffer.alloc(SECTOR_SIZE);
  sector.set(bytes.subarray(offset, offset + SECTOR_SIZE));
  return sector;
}

describe("what a disk may contain", () => {
  const ones = Buffer.alloc(1024, 1);
  const twos = Buffer.alloc(512, 2);

  /** Ones in the first two sectors, flushed; then twos in the second one. */
  function model(): DiskModel {
    const disk = new DiskModel(SparseFile.empty(8192));
    disk.done({ kind: "write", offset: 0, length: 1024, data: ones }, { start: 0, end: 2 });
    disk.flushed(3);
    disk.done({ kind: "write", offset: 512, length: 512, data: twos }, { start: 3, end: 5 });
    return disk;
  }

  function diskWith(...sectors: readonly (readonly [offset: number, value: number])[]): SparseFile {
    const disk = SparseFile.empty(8192);
    for (const [offset, value] of sectors) disk.write(offset, Buffer.alloc(512, value));
    return disk;
  }

  it("is after a kill all that was acknowledged, and of the request under way any sector", () => {
    const allowed = model().allowedAfterKill(5);
    expect(findForbidden(diskWith([0, 1], [512, 2]), allowed)).toBeUndefined();
    expect(findForbidden(diskWith([0, 1], [512, 1]), allowed)).toMatch(/sector at 0x200 /);
    const underWay = model().allowedAfterKill(4);
    expect(findForbidden(diskWith([0, 1], [512, 2]), underWay)).toBeUndefined();
    expect(findForbidden(diskWith([0, 1], [512, 1]), underWay)).toBeUndefined();
    expect(findForbidden(diskWith([0, 1]), underWay)).toMatch(/zeros/);
  });

  it("is after a power cut what was flushed, or what was written there later", () => {
    const allowed = model().allowedAfterPowerCut(5, { mixed: false });
    expect(findForbidden(diskWith([0, 1], [512, 2]), allowed)).toBeUndefined();
    expect(findForbidden(diskWith([0, 1], [512, 1]), allowed)).toBeUndefined();
    expect(findForbidden(diskWith([0, 1], [512, 3]), allowed)).toMatch(/sector at 0x200 /);
    expect(findForbidden(diskWith([512, 2]), allowed)).toMatch(/sector at 0x0 /);
    expect(findForbidden(diskWith([0, 1], [512, 1], [1024, 1]), allowed)).toMatch(/0x400 /);
    const before = model().allowedAfterPowerCut(2, { mixed: false });
    expect(findForbidden(diskWith([512, 1]), before)).toBeUndefined();
    expect(findForbidden(diskWith([512, 2]), before)).toMatch(/sector at 0x200 /);
  });

  it("is mixed byte by byte only where that is allowed", () => {
    const disk = diskWith([0, 1], [512, 1]);
    disk.write(600, Buffer.alloc(100, 2));
    const written = model();
    const data = Buffer.alloc(512, 3);
    written.done({ kind: "write", offset: 512, length: 512, data }, { start: 5, end: 6 });
    const strict = written.allowedAfterPowerCut(6, { mixed: false });
    expect(findForbidden(disk, strict)).toMatch(/from byte 88 on/);
    expect(findForbidden(disk, written.allowedAfterPowerCut(6, { mixed: true }))).toBeUndefined();
  });
});
