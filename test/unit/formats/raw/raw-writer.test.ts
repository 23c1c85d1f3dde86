/** Writing to raw images: every byte has its place, and the file is the disk. */

import { describe, expect, it } from "vitest";
import { RawImage } from "../../../../src/formats/raw/raw-image.ts";
import { RawWriter } from "../../../../src/formats/raw/raw-writer.ts";
import { ALLOCATION, HostPlace, WritePlan, ZeroProgress } from "../../../../src/formats/writer.ts";
import { AccessLock, createAccessLock } from "../../../../src/threads/access-lock.ts";
import { SparseFile } from "../../../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../../../support/recording-storage.ts";

const SIZE = 10_000;
/** Whole sectors. */
const DISK = 10_240;

function makeWriter() {
  const content = SparseFile.empty();
  content.write(0, Buffer.alloc(SIZE, 1));
  const log: RecordingLog = { operations: [] };
  const storage = new RecordingStorage("disk.raw", content, log, 0);
  const lock = new AccessLock(createAccessLock(2), 0);
  const image = new RawImage(storage);
  return { writer: new RawWriter(image, storage, lock), image, storage, log, lock };
}

describe("RawWriter", () => {
  it.each([
    { offset: 0, max: 100, length: 100 },
    { offset: 0, max: 2 ** 40, length: DISK },
    { offset: DISK - 1, max: 10, length: 1 },
    { offset: SIZE, max: 1000, length: 240 },
  ])("has $length of $max bytes at $offset in place", ({ offset, max, length }) => {
    const { writer, log } = makeWriter();
    const place = new HostPlace();
    expect(writer.mapInPlace(offset, max, place)).toBe(length);
    expect(place.hostOffset).toBe(offset);
    expect(log.operations).toEqual([]);
  });

  it.each(["release", "keep"] as const)("zeroes any range at once (%s)", (space) => {
    const { writer, storage } = makeWriter();
    const progress = new ZeroProgress();
    progress.need = ALLOCATION.needsBarrier;
    progress.mustWrite = true;
    writer.zero(17, 5000, space, 0, new WritePlan(), progress);
    expect(progress).toMatchObject({ done: 5000, mustWrite: false, need: ALLOCATION.inPlace });
    const expected = Buffer.alloc(SIZE, 1);
    expected.fill(0, 17, 5017);
    expect(storage.content.bytesAt(0, SIZE).equals(expected)).toBe(true);
  });

  it("needs no tables, and has nothing that waits", () => {
    const { writer, log } = makeWriter();
    expect(writer.unit).toBe(1);
    writer.begin();
    writer.pretendSize(undefined);
    writer.maintain();
    expect(writer.hasFrees()).toBe(false);
    expect(log.operations).toEqual([]);
    for (const impossible of [
      () => writer.allocate(),
      () => writer.link(),
      () => writer.abandon(),
      () => writer.reserve(),
    ]) {
      expect(impossible).toThrow(/raw images are all in place/);
    }
  });

  it("grows the file in one step, and takes that back", () => {
    const { writer, storage, lock } = makeWriter();
    writer.growTables(20_480);
    expect(storage.currentLength()).toBe(20_480);
    const before = lock.generation;
    writer.dropTail(DISK);
    expect(storage.currentLength()).toBe(DISK);
    expect(lock.generation).toBe(before + 1);
  });

  it("makes all durable when it is asked to, and at the end", () => {
    const { writer, log } = makeWriter();
    writer.flush();
    expect(log.operations).toEqual([{ kind: "sync", file: 0 }]);
    writer.close();
    expect(log.operations).toHaveLength(2);
  });

  it("tells all threads of another size, which they take over in their turn", () => {
    const { writer, image, storage, lock } = makeWriter();
    const other = new RawImage(storage);
    const otherWriter = new RawWriter(other, storage, lock);
    const before = lock.generation;
    writer.refresh(before);
    writer.setVirtualSize(20_480);
    expect(storage.currentLength()).toBe(20_480);
    expect(lock.generation).not.toBe(before);
    expect(image.virtualSize).toBe(DISK);
    writer.refresh(lock.generation);
    expect(image.virtualSize).toBe(20_480);
    expect(other.virtualSize).toBe(DISK);
    otherWriter.refresh(lock.generation);
    expect(other.virtualSize).toBe(20_480);
    // Nothing is asked again for the same generation.
    storage.content.setLength(512);
    writer.refresh(lock.generation);
    expect(image.virtualSize).toBe(20_480);
  });
});
