/** The table cache in one thread: what it holds, what it replaces, and how a reader notices. */

import { describe, expect, it } from "vitest";
import { createTableCache, TableCache } from "../../../src/threads/table-cache.ts";
import { Random } from "../../support/random.ts";
import { MemoryStorage } from "../memory-storage.ts";

const SLICE = 512;

/** A file whose every word is its own index, so that each slice tells where it is from. */
function indexedFile(length: number): MemoryStorage {
  const words = new Int32Array(Math.ceil(length / 4));
  for (let index = 0; index < words.length; index++) words[index] = index;
  return new MemoryStorage("tables", new Uint8Array(words.buffer, 0, length));
}

/** All words of the slice at `offset`, as the cache has them. */
function readSlice(cache: TableCache, offset: number): number[] {
  cache.lookup(offset);
  const { base, words, sliceSize } = cache;
  return Array.from({ length: sliceSize / 4 }, (_, index) => Atomics.load(words, base + index));
}

function expectedSlice(offset: number): number[] {
  return Array.from({ length: SLICE / 4 }, (_, index) => offset / 4 + index);
}

describe("TableCache", () => {
  it("reads a slice once and finds it afterwards", () => {
    const storage = indexedFile(64 * SLICE);
    const cache = new TableCache(createTableCache(SLICE, 8 * SLICE), storage);
    for (let round = 0; round < 3; round++) {
      expect(readSlice(cache, 5 * SLICE)).toEqual(expectedSlice(5 * SLICE));
      expect(cache.isValid()).toBe(true);
    }
    expect(storage.reads).toEqual([{ offset: 5 * SLICE, length: SLICE }]);
  });

  it("shares slices between the views of several threads", () => {
    const storage = indexedFile(64 * SLICE);
    const shared = createTableCache(SLICE, 8 * SLICE);
    readSlice(new TableCache(shared, storage), SLICE);
    const other = indexedFile(64 * SLICE);
    expect(readSlice(new TableCache(shared, other), SLICE)).toEqual(expectedSlice(SLICE));
    expect(other.reads).toEqual([]);
  });

  it.each([0, 1, SLICE, 8 * SLICE])(
    "has at least one whole set when %i bytes are asked for",
    (size) => {
      const { slots, memory } = createTableCache(SLICE, size);
      expect(slots).toBe(8);
      expect(memory.byteLength).toBeGreaterThanOrEqual(8 * SLICE);
    },
  );

  it("rounds its size up to whole sets", () => {
    expect(createTableCache(SLICE, 8 * SLICE + 1).slots).toBe(16);
    expect(createTableCache(4096, 1024 * 1024).slots).toBe(256);
  });

  it("fills words past the end of the file with zeros", () => {
    const storage = indexedFile(2 * SLICE + 12);
    const cache = new TableCache(createTableCache(SLICE, 0), storage);
    const last = readSlice(cache, 2 * SLICE);
    expect(last.slice(0, 3)).toEqual([256, 257, 258]);
    expect(last.slice(3).every((word) => word === 0)).toBe(true);
    expect(readSlice(cache, 100 * SLICE).every((word) => word === 0)).toBe(true);
  });

  it("keeps zeros out of a slot that held another slice before", () => {
    const storage = indexedFile(9 * SLICE + 4);
    const cache = new TableCache(createTableCache(SLICE, 0), storage);
    for (let slice = 0; slice < 9; slice++) readSlice(cache, slice * SLICE);
    expect(readSlice(cache, 9 * SLICE).slice(0, 3)).toEqual([(9 * SLICE) / 4, 0, 0]);
  });

  it("tells slices apart whose numbers differ only above 32 bits", () => {
    const storage = indexedFile(SLICE);
    const cache = new TableCache(createTableCache(SLICE, 0), storage);
    const far = 2 ** 32 * SLICE;
    expect(readSlice(cache, 0)[1]).toBe(1);
    expect(readSlice(cache, far)[1]).toBe(0);
    expect(readSlice(cache, 0)[1]).toBe(1);
    expect(storage.reads.map((read) => read.offset)).toEqual([0, far]);
  });

  it("is not valid any more for a reader whose slice was replaced", () => {
    const storage = indexedFile(64 * SLICE);
    const shared = createTableCache(SLICE, 0);
    const reader = new TableCache(shared, storage);
    const other = new TableCache(shared, storage);
    reader.lookup(0);
    for (let slice = 1; slice < 8; slice++) other.lookup(slice * SLICE);
    expect(reader.isValid()).toBe(true);
    for (let slice = 8; slice < 24; slice++) other.lookup(slice * SLICE);
    expect(reader.isValid()).toBe(false);
    expect(readSlice(reader, 0)).toEqual(expectedSlice(0));
    expect(reader.isValid()).toBe(true);
  });

  it("keeps a slice that is used all the time, while others pass through", () => {
    const storage = indexedFile(256 * SLICE);
    const cache = new TableCache(createTableCache(SLICE, 0), storage);
    for (let slice = 1; slice < 256; slice++) {
      cache.lookup(0);
      cache.lookup(slice * SLICE);
    }
    const reads = storage.reads.filter((read) => read.offset === 0).length;
    // The clock may pass the slot once in a while; without the used bit it would go every 8 slices.
    expect(reads).toBeLessThan(6);
  });

  it("does not use a slot that another thread is just replacing", () => {
    const storage = indexedFile(64 * SLICE);
    const shared = createTableCache(SLICE, 0);
    const cache = new TableCache(shared, storage);
    cache.lookup(3 * SLICE);
    const { base } = cache;
    // Slots start at word 16 with their versions; an odd one says that the bytes are not all there.
    const words = new Int32Array(shared.memory);
    expect(words[16]).toBe(2);
    Atomics.add(words, 16, 1);
    words[base + 5] = -1;
    expect(cache.isValid()).toBe(false);
    const other = new TableCache(shared, storage);
    expect(readSlice(other, 3 * SLICE)).toEqual(expectedSlice(3 * SLICE));
    expect(other.base).not.toBe(base);
  });

  it("looks up any sequence of slices right, however small the cache", () => {
    const random = new Random("table cache sequence");
    const storage = indexedFile(100 * SLICE);
    const cache = new TableCache(createTableCache(SLICE, 16 * SLICE), storage);
    for (let round = 0; round < 3000; round++) {
      const offset = random.below(100) * SLICE;
      cache.lookup(offset);
      const index = random.below(SLICE / 4);
      expect(Atomics.load(cache.words, cache.base + index)).toBe(offset / 4 + index);
    }
  });

  it("holds nothing of a slice whose read failed, and reads it at the next lookup", () => {
    const storage = indexedFile(64 * SLICE);
    const cache = new TableCache(createTableCache(SLICE, 0), storage);
    expect(readSlice(cache, SLICE)).toEqual(expectedSlice(SLICE));
    storage.failing = true;
    expect(() => cache.lookup(2 * SLICE)).toThrow(/tables: read/);
    expect(readSlice(cache, SLICE)).toEqual(expectedSlice(SLICE));
    storage.failing = false;
    expect(readSlice(cache, 2 * SLICE)).toEqual(expectedSlice(2 * SLICE));
  });
});
