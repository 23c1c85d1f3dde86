/** Local files that are written to, on the file systems that there are, against a model in memory. */

import fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LocalFile } from "../../../src/storage/local-file.ts";
import type { HostRun } from "../../../src/storage/storage.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { withMemoryScratch } from "../../support/crash-scratch.ts";
import { Random } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { expectBytes } from "../expect-bytes.ts";

const KIB = 1024;
const PAGE = 4096;

function bufferOf(bytes: Uint8Array): NativeBuffer {
  const buffer = NativeBuffer.allocate(bytes.length);
  buffer.bytes.set(bytes);
  return buffer;
}

/** What a file contains. */
class FileModel {
  bytes: Buffer;

  constructor(bytes: Uint8Array) {
    this.bytes = Buffer.from(bytes);
  }

  setLength(length: number): void {
    const padding = Buffer.alloc(Math.max(0, length - this.bytes.length));
    this.bytes = Buffer.concat([this.bytes, padding]).subarray(0, length);
  }

  lengthen(length: number): void {
    if (length > this.bytes.length) this.setLength(length);
  }
}

/** A range that a change is about, and where its bytes come from. */
interface ChangeRange {
  readonly offset: number;
  readonly length: number;
  readonly random: Random;
}

/** Each does the same to a file and to the model, or looks whether they are the same. */
const CHANGES = {
  write(file: LocalFile, model: FileModel, { offset, length, random }: ChangeRange): void {
    const bytes = random.bytes(length);
    file.writeAt(bufferOf(bytes), 0, length, offset);
    if (length > 0) model.lengthen(offset + length);
    bytes.copy(model.bytes, offset);
  },
  zero(file: LocalFile, model: FileModel, { offset, length, random }: ChangeRange): void {
    file.zeroAt(offset, length, random.pick(["release", "keep"]));
    model.bytes.subarray(offset, offset + length).fill(0);
  },
  preallocate(file: LocalFile, model: FileModel, { offset, length }: ChangeRange): void {
    if (length === 0) return;
    file.preallocate(offset, length);
    model.lengthen(offset + length);
  },
  cut(file: LocalFile, model: FileModel, { offset }: ChangeRange): void {
    file.setLength(offset);
    model.setLength(offset);
  },
  look(file: LocalFile, model: FileModel, { offset, length }: ChangeRange): void {
    const expected = Buffer.alloc(length);
    model.bytes.subarray(offset, offset + length).copy(expected);
    if (file.isHole(offset, length)) expectBytes(expected, Buffer.alloc(length), "a hole");
    const target = NativeBuffer.allocate(length);
    file.readAt(target, 0, length, offset);
    expectBytes(target.bytes, expected);
  },
} as const;

/** How often each is made. */
const USUAL_CHANGES = ["write", "write", "zero", "zero", "preallocate", "cut", "look"] as const;

/** What SEEK_DATA and SEEK_HOLE of another program would tell: bytes that the host stores. */
function storedBytes(path: string): number {
  return fs.statSync(path).blocks * 512;
}

describe.each([
  // Has all that fallocate(2) knows, usually.
  { where: "the temporary directory", parent: tmpdir },
  // Has no FALLOC_FL_ZERO_RANGE.
  { where: "memory", parent: undefined },
])("a LocalFile in $where", ({ parent }) => {
  let path = "";
  let remove = (): void => undefined;
  let removed: Promise<void> = Promise.resolve();

  beforeAll(async () => {
    if (parent !== undefined) {
      const directory = fs.mkdtempSync(join(parent(), "tsimgfs-local-file-"));
      path = join(directory, "file");
      remove = () => fs.rmSync(directory, { recursive: true });
      return;
    }
    await new Promise<void>((ready) => {
      removed = withMemoryScratch("local-file", (directory) => {
        path = join(directory, "file");
        ready();
        return new Promise<void>((resolve) => {
          remove = resolve;
        });
      });
    });
  });

  afterAll(async () => {
    remove();
    await removed;
  });

  /** Calls `body` with a file of these bytes, open for writing; returns what it holds afterwards. */
  function withFile(bytes: Uint8Array, body: (file: LocalFile) => void): Buffer {
    fs.writeFileSync(path, bytes);
    const file = LocalFile.open(path, "read-write");
    try {
      body(file);
    } finally {
      file.close();
    }
    return fs.readFileSync(path);
  }

  const content = new Random("local file writing").bytes(10_000);

  it.each([
    { offset: 0, length: 10_000 },
    { offset: 0, length: 1 },
    { offset: 9_999, length: 1 },
    { offset: 4_095, length: 4_098 },
    { offset: 17, length: 0 },
    { offset: 9_999, length: 2 },
    { offset: 10_000, length: 5_000 },
    { offset: 100_000, length: 3 },
  ])("writes $length bytes at $offset, and grows as needed", ({ offset, length }) => {
    const random = new Random(`write ${offset}`);
    const bytes = random.bytes(length + 30);
    const result = withFile(content, (file) => {
      file.writeAt(bufferOf(bytes), 13, length, offset);
      const end = length === 0 ? 0 : offset + length;
      expect(file.currentLength()).toBe(Math.max(10_000, end));
      expect(file.length).toBe(10_000);
    });
    const expected = Buffer.alloc(Math.max(10_000, length === 0 ? 0 : offset + length));
    content.copy(expected);
    bytes.copy(expected, offset, 13, 13 + length);
    expectBytes(result, expected);
  });

  it.each([
    { offset: 0, length: 10_000 },
    { offset: 1, length: 1 },
    { offset: 4_096, length: 4_096 },
    { offset: 4_095, length: 4_098 },
    { offset: 9_999, length: 1 },
    { offset: 9_999, length: 100_000 },
    { offset: 10_000, length: 1 },
    { offset: 2 ** 40, length: 2 ** 40 },
    { offset: 5, length: 0 },
  ])("zeroes $length bytes at $offset; the length stays", ({ offset, length }) => {
    for (const space of ["release", "keep"] as const) {
      const result = withFile(content, (file) => {
        file.zeroAt(offset, length, space);
        expect(file.currentLength()).toBe(10_000);
      });
      const expected = Buffer.from(content);
      if (offset < 10_000) expected.fill(0, offset, Math.min(10_000, offset + length));
      expectBytes(result, expected, space);
    }
  });

  it("gives space back, or keeps it, as is asked for", () => {
    const data = Buffer.alloc(64 * KIB, 1);
    withFile(data, (file) => {
      file.sync();
      file.zeroAt(16 * KIB, 32 * KIB, "keep");
      expect(storedBytes(path)).toBeGreaterThanOrEqual(64 * KIB);
      expect(file.allocatedSize()).toBe(storedBytes(path));
      file.zeroAt(16 * KIB, 32 * KIB, "release");
      expect(storedBytes(path)).toBeLessThanOrEqual(40 * KIB);
      expect(file.isHole(16 * KIB, 32 * KIB)).toBe(true);
      expect(file.isHole(16 * KIB - 1, 1)).toBe(false);
      expect(file.isHole(16 * KIB, 32 * KIB + 1)).toBe(false);
    });
  });

  it("sets space aside without changing what is there", () => {
    const result = withFile(content, (file) => {
      file.preallocate(0, 10_000);
      expect(file.currentLength()).toBe(10_000);
      file.preallocate(5_000, 95_000);
      expect(file.currentLength()).toBe(100_000);
      expect(storedBytes(path)).toBeGreaterThanOrEqual(100_000);
    });
    expectBytes(result, Buffer.concat([content, Buffer.alloc(90_000)]));
  });

  it.each([0, 1, 9_999, 10_000, 10_001, 1_000_000])("is made %i bytes long", (length) => {
    const result = withFile(content, (file) => {
      file.setLength(length);
      expect(file.currentLength()).toBe(length);
      expect(storedBytes(path)).toBeLessThanOrEqual(16 * KIB);
    });
    const expected = Buffer.alloc(length);
    content.copy(expected);
    expectBytes(result, expected);
  });

  it("has zeros where it was cut off and grew again", () => {
    const result = withFile(content, (file) => {
      file.setLength(5_000);
      file.setLength(10_000);
    });
    expectBytes(result, Buffer.concat([content.subarray(0, 5_000), Buffer.alloc(5_000)]));
  });

  it("is a hole past its end, and has nothing but that when it is empty", () => {
    const run: HostRun = { isData: true, length: 0 };
    withFile(content, (file) => {
      for (const offset of [10_000, 10_001, PAGE * 100, 2 ** 50]) {
        run.isData = true;
        file.hostRun(offset, run);
        expect(run.isData, `at ${offset}`).toBe(false);
        expect(run.length).toBeGreaterThanOrEqual(2 ** 50);
        expect(file.isHole(offset, 1)).toBe(true);
        expect(file.isHole(offset, 2 ** 50)).toBe(true);
      }
      expect(file.isHole(9_999, 1)).toBe(false);
      expect(file.isHole(9_999, 2 ** 30)).toBe(false);
    });
    withFile(new Uint8Array(0), (file) => {
      run.isData = true;
      file.hostRun(0, run);
      expect(run.isData).toBe(false);
      expect(file.isHole(0, 10)).toBe(true);
    });
  });

  it("does, in any order, what a model in memory does", () => {
    const random = new Random("local file model");
    const model = new FileModel(content);
    const result = withFile(content, (file) => {
      for (let step = 0; step < byScale(300, 10_000); step++) {
        const offset = random.below(60_000);
        const length = random.below(random.pick([20, 5_000, 40_000]));
        CHANGES[random.pick(USUAL_CHANGES)](file, model, { offset, length, random });
        expect(file.currentLength()).toBe(model.bytes.length);
      }
    });
    expectBytes(result, model.bytes);
  });
});
