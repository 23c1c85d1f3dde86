/** The table cache of an image that is written to: what is cached of a file follows the file. */

import { describe, expect, it } from "vitest";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { createTableCache, TableCache } from "../../../src/threads/table-cache.ts";
import { Random } from "../../support/random.ts";
import { MemoryStorage } from "../memory-storage.ts";

const SLICE = 512;
const SLICES = 64;

function randomFile(label: string): MemoryStorage {
  return new MemoryStorage("tables", new Random(label).bytes(SLICES * SLICE));
}

/** The slice at `offset`, as the cache has it. */
function readSlice(cache: TableCache, offset: number): Buffer {
  cache.lookup(offset);
  const words = Int32Array.from({ length: cache.sliceSize / 4 }, (_, index) => {
    return Atomics.load(cache.words, cache.base + index);
  });
  expect(cache.isValid()).toBe(true);
  return Buffer.from(words.buffer);
}

/** Writes to the file and then to the cache. */
function write(cache: TableCache, storage: MemoryStorage, offset: number, bytes: Buffer): void {
  storage.bytes.set(bytes, offset);
  const source = NativeBuffer.allocate(bytes.length + 24);
  source.bytes.fill(0xee);
  source.bytes.set(bytes, 12);
  cache.update(source, 12, bytes.length, offset);
}

describe("TableCache.update", () => {
  const random = new Random("table cache update");

  it.each([
    { offset: 3 * SLICE, length: 8 },
    { offset: 3 * SLICE + 4, length: 4 },
    { offset: 4 * SLICE - 4, length: 4 },
    { offset: 3 * SLICE, length: SLICE },
    { offset: 4 * SLICE - 8, length: 16 },
    { offset: 2 * SLICE + 100, length: 3 * SLICE },
    { offset: 3 * SLICE, length: 0 },
  ])("changes $length bytes at $offset, without a read", ({ offset, length }) => {
    const storage = randomFile("update");
    const cache = new TableCache(createTableCache(SLICE, SLICES * SLICE), storage);
    for (let slice = 0; slice < 8; slice++) readSlice(cache, slice * SLICE);
    const reads = storage.reads.length;
    write(cache, storage, offset, random.bytes(length));
    for (let slice = 0; slice < 8; slice++) {
      const at = slice * SLICE;
      expect(readSlice(cache, at).equals(storage.bytes.subarray(at, at + SLICE))).toBe(true);
    }
    expect(storage.reads).toHaveLength(reads);
  });

  it("leaves alone what is not cached: it is read when it is asked for", () => {
    const storage = randomFile("not cached");
    const cache = new TableCache(createTableCache(SLICE, SLICES * SLICE), storage);
    readSlice(cache, 5 * SLICE);
    write(cache, storage, 4 * SLICE, random.bytes(3 * SLICE));
    expect(storage.reads).toHaveLength(1);
    for (const slice of [4, 5, 6]) {
      const at = slice * SLICE;
      expect(readSlice(cache, at).equals(storage.bytes.subarray(at, at + SLICE))).toBe(true);
    }
    expect(storage.reads).toHaveLength(3);
  });

  it("tells those who have looked at the slice before", () => {
    const storage = randomFile("tells");
    const shared = createTableCache(SLICE, SLICES * SLICE);
    const [one, other] = [new TableCache(shared, storage), new TableCache(shared, storage)];
    other.lookup(SLICE);
    write(one, storage, 2 * SLICE, random.bytes(SLICE));
    expect(other.isValid()).toBe(true);
    write(one, storage, SLICE + 8, random.bytes(4));
    expect(other.isValid()).toBe(false);
    expect(readSlice(other, SLICE).equals(storage.bytes.subarray(SLICE, 2 * SLICE))).toBe(true);
  });

  it("keeps slices apart whose numbers differ by 2^32", () => {
    const storage = randomFile("far");
    const cache = new TableCache(createTableCache(SLICE, 0), storage);
    const near = SLICE;
    const far = SLICE + 2 ** 32 * SLICE;
    const before = readSlice(cache, near);
    readSlice(cache, far);
    const source = NativeBuffer.allocate(SLICE);
    source.bytes.fill(7);
    cache.update(source, 0, SLICE, far);
    expect(readSlice(cache, near).equals(before)).toBe(true);
    expect(readSlice(cache, far).equals(Buffer.alloc(SLICE, 7))).toBe(true);
    cache.invalidate(far, SLICE);
    const reads = storage.reads.length;
    expect(readSlice(cache, near).equals(before)).toBe(true);
    expect(storage.reads).toHaveLength(reads);
    expect(readSlice(cache, far).equals(Buffer.alloc(SLICE))).toBe(true);
  });
});

describe("TableCache.invalidate", () => {
  it.each([
    { offset: 3 * SLICE, length: SLICE, forgotten: [3] },
    { offset: 3 * SLICE, length: 3 * SLICE, forgotten: [3, 4, 5] },
    { offset: 0, length: SLICE, forgotten: [0] },
    { offset: 7 * SLICE, length: 9 * SLICE, forgotten: [7] },
    { offset: 3 * SLICE, length: 0, forgotten: [] },
  ])("forgets $length bytes at $offset, and nothing else", ({ offset, length, forgotten }) => {
    const storage = randomFile("forgets");
    const cache = new TableCache(createTableCache(SLICE, SLICES * SLICE), storage);
    for (let slice = 0; slice < 8; slice++) readSlice(cache, slice * SLICE);
    const cached = Buffer.from(storage.bytes);
    storage.bytes.fill(0x33);
    cache.invalidate(offset, length);
    for (let slice = 0; slice < 8; slice++) {
      const at = slice * SLICE;
      const now = forgotten.includes(slice) ? storage.bytes : cached;
      expect(readSlice(cache, at).equals(now.subarray(at, at + SLICE)), `slice ${slice}`).toBe(
        true,
      );
    }
  });

  it("tells those who have looked at the slice before", () => {
    const storage = randomFile("tells");
    const shared = createTableCache(SLICE, SLICES * SLICE);
    const [one, other] = [new TableCache(shared, storage), new TableCache(shared, storage)];
    other.lookup(SLICE);
    one.invalidate(2 * SLICE, SLICE);
    expect(other.isValid()).toBe(true);
    one.invalidate(SLICE, SLICE);
    expect(other.isValid()).toBe(false);
  });

  it("makes room: the next slice of the set takes its place", () => {
    const storage = randomFile("room");
    // One set of eight.
    const cache = new TableCache(createTableCache(SLICE, 0), storage);
    for (let slice = 0; slice < 8; slice++) readSlice(cache, slice * SLICE);
    cache.invalidate(5 * SLICE, SLICE);
    readSlice(cache, 20 * SLICE);
    const reads = storage.reads.length;
    for (const slice of [0, 1, 2, 3, 4, 6, 7, 20]) readSlice(cache, slice * SLICE);
    expect(storage.reads).toHaveLength(reads);
  });

  it("and update, in any order with lookups, always leave what the file has", () => {
    const random = new Random("table cache model");
    const storage = randomFile("model");
    // Two sets: slices are replaced all the time.
    const shared = createTableCache(SLICE, 16 * SLICE);
    const caches = [new TableCache(shared, storage), new TableCache(shared, storage)] as const;
    for (let round = 0; round < 5000; round++) {
      const cache = random.pick(caches);
      const slice = random.below(SLICES);
      const at = slice * SLICE;
      switch (random.below(4)) {
        case 0: {
          const start = random.below(SLICE / 4) * 4;
          const length = Math.min(random.below(400) * 4, storage.length - at - start);
          write(cache, storage, at + start, random.bytes(length));
          break;
        }
        case 1: {
          const length = Math.min(random.between(1, 4) * SLICE, storage.length - at);
          storage.bytes.set(random.bytes(length), at);
          cache.invalidate(at, length);
          break;
        }
        default:
          expect(readSlice(cache, at).equals(storage.bytes.subarray(at, at + SLICE))).toBe(true);
      }
    }
  });
});
