/** New raw images, and the space that is set aside for new images of all formats. */

import { describe, expect, it } from "vitest";
import { StorageError } from "../../../../src/errors.ts";
import { allocateStart, createRaw, requireLength } from "../../../../src/formats/raw/create.ts";
import { Random } from "../../../support/random.ts";
import { SparseFile } from "../../../support/recording-sparse-file.ts";
import {
  describeOperation,
  type RecordingLog,
  RecordingStorage,
} from "../../../support/recording-storage.ts";

const SIZE = 3 * 1024 ** 2 + 512;

interface Fixture {
  readonly content: SparseFile;
  readonly log: RecordingLog;
  readonly storage: RecordingStorage;
}

/** A file that contains some bytes. Its host knows no fallocate(2). */
function fileWith(length: number): Fixture {
  const content = SparseFile.empty();
  content.write(0, new Random("raw create").bytes(length));
  const log: RecordingLog = { operations: [] };
  return { content, log, storage: new RecordingStorage("new.raw", content, log, 0) };
}

describe("createRaw", () => {
  it.each([0, 512, 5000])("leaves nothing of a file of %i bytes", (length) => {
    const { content, log, storage } = fileWith(length);
    Array.from(createRaw(storage, { virtualSize: SIZE, preallocation: "off" }));
    expect(content.length).toBe(SIZE);
    expect(content.allocated).toBe(0);
    expect(log.operations.at(-1)?.kind).toBe("sync");
  });

  it.each(["falloc", "full"] as const)("writes zeros for %s where nothing else helps", (mode) => {
    const { content, storage } = fileWith(5000);
    Array.from(createRaw(storage, { virtualSize: SIZE, preallocation: mode }));
    expect(content.length).toBe(SIZE);
    expect(content.allocated).toBeGreaterThanOrEqual(SIZE);
    expect(content.bytesAt(0, SIZE).equals(Buffer.alloc(SIZE))).toBe(true);
  });

  it("makes an image without bytes", () => {
    const { content, storage } = fileWith(5000);
    Array.from(createRaw(storage, { virtualSize: 0, preallocation: "full" }));
    expect(content.length).toBe(0);
  });

  it("clears the first sector of a block device, which keeps its length", () => {
    const { content, storage, log } = fileWith(8192);
    const before = content.bytesAt(0, 8192);
    Object.defineProperty(storage, "resizable", { value: false });
    Array.from(createRaw(storage, { virtualSize: 4096, preallocation: "off" }));
    expect(content.length).toBe(8192);
    expect(content.bytesAt(0, 512).equals(Buffer.alloc(512))).toBe(true);
    expect(content.bytesAt(512, 7680).equals(before.subarray(512))).toBe(true);
    expect(log.operations.map(({ kind }) => kind)).not.toContain("length");
  });
});

describe("allocateStart", () => {
  it("writes no zeros if the host has set space aside", () => {
    const { log, storage } = fileWith(0);
    storage.setLength(SIZE);
    Object.defineProperty(storage, "allocatedSize", { value: () => SIZE + 3584 });
    Array.from(allocateStart(storage, SIZE, "falloc"));
    expect(log.operations.map(describeOperation)).toEqual(["image: length 0x300200"]);
    Array.from(allocateStart(storage, SIZE, "full"));
    expect(log.operations.filter(({ kind }) => kind === "write")).toHaveLength(4);
  });
});

describe("requireLength", () => {
  it("tries a longer length, and changes nothing", () => {
    const { content, storage } = fileWith(5000);
    const before = content.bytesAt(0, 5000);
    requireLength(storage, 4000);
    requireLength(storage, 2 ** 24);
    expect(content.length).toBe(5000);
    expect(content.bytesAt(0, 5000).equals(before)).toBe(true);
  });

  it("refuses what the host's file system cannot have", () => {
    const { content, storage } = fileWith(5000);
    Object.defineProperty(storage, "setLength", {
      value: () => {
        throw new StorageError("EFBIG", "new.raw", "truncate failed: EFBIG");
      },
    });
    expect(() => requireLength(storage, 2 ** 50)).toThrow(
      "new.raw: the host's file system has no files of 1125899906842624 bytes",
    );
    expect(content.length).toBe(5000);
  });

  it("refuses a block device that is too small", () => {
    const { storage } = fileWith(8192);
    Object.defineProperty(storage, "resizable", { value: false });
    expect(() => requireLength(storage, 8193)).toThrow(
      "new.raw: the image needs 8193 bytes, the device has 8192",
    );
    requireLength(storage, 8192);
  });
});
