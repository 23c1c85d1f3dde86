/**
 * Cache of mapping tables, shared by all threads that read an image: slices of the image file, keyed
 * by host offset, always clean. Set-associative with a clock per set, in one SharedArrayBuffer:
 *
 *     word 0               the mutex of all changes
 *     word 1               counts changes of the file
 *     4 words a slot       version (odd: being replaced) | key low | key high | used since the clock passed
 *     sliceSize a slot     the bytes of the slice as they are on disk
 *
 * Readers take no lock and copy nothing. They note a slot's version, read words, and check that the
 * version still holds; if not, another thread replaced the slice meanwhile and they look it up again.
 */

import { TWO_TO_32 } from "../binary/words.ts";
import type { Storage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { COUNTER, count, privateCounters } from "./counters.ts";
import { Mutex } from "./mutex.ts";

const WAYS = 8;

const MUTEX_WORD = 0;
const CHANGES_WORD = 1;
const SLOTS_WORD = 16;
const SLOT_WORDS = 4;
const VERSION = 0;
const KEY_LO = 1;
const KEY_HI = 2;
const USED = 3;

/** The key of a slot that holds nothing: above every slice number. */
const NO_KEY = -1;

/** What another thread needs to use the same cache: plain data for structured clone. */
export interface SharedTableCache {
  readonly memory: SharedArrayBuffer;
  readonly sliceSize: number;
  readonly slots: number;
}

/**
 * Memory for a cache.
 *
 * @param sliceSize bytes, a power of two
 * @param size bytes; rounded up to whole sets
 */
export function createTableCache(sliceSize: number, size: number): SharedTableCache {
  const setBytes = sliceSize * WAYS;
  const sets = Math.max(1, Math.ceil(size / setBytes));
  const slots = sets * WAYS;
  const headerBytes = dataStart(slots);
  const memory = new SharedArrayBuffer(headerBytes + slots * sliceSize);
  const words = new Int32Array(memory);
  for (let slot = 0; slot < slots; slot++) words[SLOTS_WORD + slot * SLOT_WORDS + KEY_HI] = NO_KEY;
  return { memory, sliceSize, slots };
}

function dataStart(slots: number): number {
  return Math.ceil(((SLOTS_WORD + slots * SLOT_WORDS) * 4) / 4096) * 4096;
}

export class TableCache {
  readonly sliceSize: number;
  /** The cache as 32-bit words; read them with `Atomics.load`, between `lookup` and `isValid`. */
  readonly words: Int32Array;
  /** Word index of the first word of the slice that `lookup` found. */
  base = 0;

  readonly #storage: Storage;
  readonly #counters: Float64Array;
  readonly #mutex: Mutex;
  readonly #bytes: Uint8Array;
  readonly #sets: number;
  readonly #dataStart: number;
  /** A slice is read here first, so that no other thread waits for the read. */
  readonly #incoming: NativeBuffer;
  #versionWord = 0;
  #version = 0;

  /** @param counters of this thread: where hits and misses are counted */
  constructor(
    shared: SharedTableCache,
    storage: Storage,
    counters: Float64Array = privateCounters(),
  ) {
    this.sliceSize = shared.sliceSize;
    this.words = new Int32Array(shared.memory);
    this.#bytes = new Uint8Array(shared.memory);
    this.#storage = storage;
    this.#counters = counters;
    this.#mutex = new Mutex(this.words, MUTEX_WORD);
    this.#sets = shared.slots / WAYS;
    this.#dataStart = dataStart(shared.slots);
    this.#incoming = NativeBuffer.allocate(shared.sliceSize);
  }

  /**
   * Find the slice that starts at `offset`, reading it if it is not here; afterwards `base` is the
   * index in `words` of its first word. What lies past the end of the file is zeros.
   *
   * @param offset host offset, bytes, a multiple of `sliceSize`
   */
  lookup(offset: number): void {
    const key = offset / this.sliceSize;
    const hi = Math.floor(key / TWO_TO_32);
    const lo = key | 0;
    const set = key % this.#sets;
    if (this.#find(set, lo, hi)) count(this.#counters, COUNTER.tableCacheHits, 1);
    else {
      count(this.#counters, COUNTER.tableCacheMisses, 1);
      this.#fill(set, lo, hi, offset);
    }
  }

  /** Whether all words read since the last `lookup` were of that slice; else look it up again. */
  isValid(): boolean {
    return Atomics.load(this.words, this.#versionWord) === this.#version;
  }

  /**
   * Bring what is cached of a part of the file up to date, after the file was written to. Whoever looks
   * slices up meanwhile must be kept out, but for who is reading one from the file: he reads it again.
   *
   * @param source.bytes[start] on: the new bytes of the file at `offset`; words of 4 bytes
   */
  update(source: NativeBuffer, start: number, length: number, offset: number): void {
    Atomics.add(this.words, CHANGES_WORD, 1);
    let done = 0;
    while (done < length) {
      const inSlice = (offset + done) % this.sliceSize;
      const count = Math.min(length - done, this.sliceSize - inSlice);
      if (this.#locate(offset + done - inSlice)) {
        const bytes = source.bytes.subarray(start + done, start + done + count);
        this.#change(this.base * 4 + inSlice, bytes);
      }
      done += count;
    }
  }

  /** Forget what is cached of a part of the file: whole slices. As for `update`, keep others out. */
  invalidate(offset: number, length: number): void {
    Atomics.add(this.words, CHANGES_WORD, 1);
    for (let done = 0; done < length; done += this.sliceSize) {
      if (!this.#locate(offset + done)) continue;
      const at = this.#versionWord - VERSION;
      this.#mutex.lock();
      Atomics.store(this.words, at + KEY_HI, NO_KEY);
      Atomics.add(this.words, this.#versionWord, 2);
      this.#mutex.unlock();
    }
  }

  /** As `lookup`, without reading the file: false if the slice is not here. */
  #locate(offset: number): boolean {
    const key = offset / this.sliceSize;
    return this.#find(key % this.#sets, key | 0, Math.floor(key / TWO_TO_32));
  }

  /** Change bytes of the slice that was found last. */
  #change(at: number, bytes: Uint8Array): void {
    this.#mutex.lock();
    Atomics.add(this.words, this.#versionWord, 1);
    this.#bytes.set(bytes, at);
    Atomics.add(this.words, this.#versionWord, 1);
    this.#mutex.unlock();
  }

  #find(set: number, lo: number, hi: number): boolean {
    const words = this.words;
    for (let way = 0; way < WAYS; way++) {
      const slot = set * WAYS + way;
      const at = SLOTS_WORD + slot * SLOT_WORDS;
      if (Atomics.load(words, at + KEY_LO) !== lo || Atomics.load(words, at + KEY_HI) !== hi)
        continue;
      const version = Atomics.load(words, at + VERSION);
      if ((version & 1) !== 0) continue;
      // The keys were read before the version: they count only if they still hold after it.
      if (Atomics.load(words, at + KEY_LO) !== lo || Atomics.load(words, at + KEY_HI) !== hi)
        continue;
      // Written only when it changes: a line that all threads write would move between CPUs.
      if (Atomics.load(words, at + USED) === 0) Atomics.store(words, at + USED, 1);
      this.#versionWord = at + VERSION;
      this.#version = version;
      this.base = (this.#dataStart + slot * this.sliceSize) / 4;
      return true;
    }
    return false;
  }

  #fill(set: number, lo: number, hi: number, offset: number): void {
    const words = this.words;
    let changes: number;
    do {
      changes = Atomics.load(words, CHANGES_WORD);
      this.#storage.readAt(this.#incoming, 0, this.sliceSize, offset);
      // The storage may have given up the lock that keeps changes of the file out.
    } while (Atomics.load(words, CHANGES_WORD) !== changes);
    this.#mutex.lock();
    try {
      // Another thread may have brought the same slice meanwhile.
      if (this.#find(set, lo, hi)) return;
      const slot = this.#victim(set);
      const at = SLOTS_WORD + slot * SLOT_WORDS;
      // A read-modify-write: no store below may become visible before the version is odd.
      const version = Atomics.add(words, at + VERSION, 1);
      Atomics.store(words, at + KEY_LO, lo);
      Atomics.store(words, at + KEY_HI, hi);
      this.#bytes.set(this.#incoming.bytes, this.#dataStart + slot * this.sliceSize);
      Atomics.store(words, at + USED, 1);
      Atomics.store(words, at + VERSION, (version + 2) | 0);
      this.#versionWord = at + VERSION;
      this.#version = (version + 2) | 0;
      this.base = (this.#dataStart + slot * this.sliceSize) / 4;
    } finally {
      this.#mutex.unlock();
    }
  }

  /** The slot of a set to replace: an empty one, else the first not used since the clock last passed. */
  #victim(set: number): number {
    const words = this.words;
    const first = set * WAYS;
    for (let slot = first; slot < first + WAYS; slot++) {
      if (Atomics.load(words, SLOTS_WORD + slot * SLOT_WORDS + KEY_HI) === NO_KEY) return slot;
    }
    for (let slot = first; slot < first + WAYS; slot++) {
      const used = SLOTS_WORD + slot * SLOT_WORDS + USED;
      if (Atomics.load(words, used) === 0) return slot;
      Atomics.store(words, used, 0);
    }
    return first;
  }
}
