/**
 * Encrypting and decrypting sectors, many at a time and in place. OpenSSL's own modes take a call or two
 * for each sector, and have no XTS with AES-192; here, AES goes over a whole batch in one call, and what a
 * mode adds are exclusive ors of words (native-notes/encryption.md has the numbers).
 */

import assert from "node:assert";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { AES_BLOCK_SIZE, Aes } from "./aes.ts";
import { type CipherSuite, keysOf } from "./cipher-suite.ts";
import { SectorVectors } from "./sector-vectors.ts";

/** What is encrypted under one initialisation vector, bytes. */
export const CRYPT_SECTOR_SIZE = 512;
/** Bytes of a batch: with what they are combined with, they stay in the caches of the processor. */
const BATCH_SIZE = 64 * 1024;

const WORD_SIZE = Int32Array.BYTES_PER_ELEMENT;
const BLOCK_WORDS = AES_BLOCK_SIZE / WORD_SIZE;
const SECTOR_WORDS = CRYPT_SECTOR_SIZE / WORD_SIZE;
const SECTOR_BLOCKS = CRYPT_SECTOR_SIZE / AES_BLOCK_SIZE;
/** x^128 = x^7 + x^2 + x + 1 in the field of XTS tweaks. Source: IEEE 1619, 5.2. */
const XTS_POLYNOMIAL = 0x87;

export class SectorCipher {
  readonly #suite: CipherSuite;
  readonly #aes: Aes;
  /** Of XTS: what encrypts the tweaks. */
  readonly #tweakAes: Aes | undefined;
  readonly #vectors: SectorVectors;
  /** Vectors of a batch, or one block of each of its sectors. */
  readonly #blocks = NativeBuffer.allocate((BATCH_SIZE / CRYPT_SECTOR_SIZE) * AES_BLOCK_SIZE);
  readonly #blockWords = wordsOf(this.#blocks);
  /** What the sectors of a batch are combined with. */
  readonly #masks = NativeBuffer.allocate(BATCH_SIZE);
  readonly #maskWords = wordsOf(this.#masks);
  /** The buffer that was used last, and its words: most often it is the next one too. */
  #buffer: NativeBuffer | undefined;
  #words: Int32Array = new Int32Array(0);

  /**
   * @param key of `suite.keyBytes`; not used any more afterwards
   * @throws {UnsupportedError} there is no libcrypto
   */
  constructor(suite: CipherSuite, key: Uint8Array) {
    assert(key.length === suite.keyBytes, "a key of another size");
    this.#suite = suite;
    const size = key.length / keysOf(suite.mode);
    this.#aes = new Aes(key.subarray(0, size));
    this.#tweakAes = suite.mode === "xts" ? new Aes(key.subarray(size)) : undefined;
    this.#vectors = new SectorVectors(suite, key);
  }

  /**
   * Encrypt whole sectors.
   *
   * @param start index in `buffer.bytes`, a multiple of 4
   * @param length bytes, a multiple of 512
   * @param first number of the first sector
   */
  encrypt(buffer: NativeBuffer, start: number, length: number, first: number): void {
    this.#crypt(buffer, start, length, first, true);
  }

  /** As `encrypt`, the other way. */
  decrypt(buffer: NativeBuffer, start: number, length: number, first: number): void {
    this.#crypt(buffer, start, length, first, false);
  }

  /** Batch by batch: what a mode needs for each sector is made for all of a batch. */
  #crypt(
    buffer: NativeBuffer,
    start: number,
    length: number,
    first: number,
    encrypts: boolean,
  ): void {
    const words = this.#wordsOf(buffer);
    for (let done = 0; done < length; done += BATCH_SIZE) {
      const bytes = Math.min(length - done, BATCH_SIZE);
      this.#prepare(first + done / CRYPT_SECTOR_SIZE, bytes / CRYPT_SECTOR_SIZE);
      if (this.#suite.mode === "ctr") {
        this.#addCounters(words, (start + done) / WORD_SIZE, bytes / CRYPT_SECTOR_SIZE);
      } else if (encrypts) this.#encryptBatch(buffer, words, start + done, bytes);
      else this.#decryptBatch(buffer, words, start + done, bytes);
    }
  }

  #encryptBatch(buffer: NativeBuffer, words: Int32Array, start: number, bytes: number): void {
    const { mode } = this.#suite;
    const at = start / WORD_SIZE;
    const sectors = bytes / CRYPT_SECTOR_SIZE;
    if (mode === "cbc") {
      this.#encryptChains(words, at, sectors);
      return;
    }
    if (mode === "xts") addTweaks(words, at, sectors, this.#blockWords, this.#maskWords);
    this.#aes.encrypt(buffer, start, bytes);
    if (mode === "xts") addMasks(words, at, bytes / WORD_SIZE, this.#maskWords);
  }

  #decryptBatch(buffer: NativeBuffer, words: Int32Array, start: number, bytes: number): void {
    const { mode } = this.#suite;
    const at = start / WORD_SIZE;
    const sectors = bytes / CRYPT_SECTOR_SIZE;
    if (mode === "xts") addTweaks(words, at, sectors, this.#blockWords, this.#maskWords);
    else if (mode === "cbc") this.#keepChains(words, at, sectors);
    this.#aes.decrypt(buffer, start, bytes);
    if (mode !== "ecb") addMasks(words, at, bytes / WORD_SIZE, this.#maskWords);
  }

  #wordsOf(buffer: NativeBuffer): Int32Array {
    if (this.#buffer !== buffer) {
      this.#buffer = buffer;
      this.#words = wordsOf(buffer);
    }
    return this.#words;
  }

  /** The vectors of a batch; of XTS, its first tweaks. */
  #prepare(first: number, sectors: number): void {
    if (this.#suite.mode === "ecb") return;
    this.#vectors.fill(this.#blocks, first, sectors);
    this.#tweakAes?.encrypt(this.#blocks, 0, sectors * AES_BLOCK_SIZE);
  }

  /** CBC: what each block will be combined with is the block before it, or the vector. */
  #keepChains(words: Int32Array, at: number, sectors: number): void {
    const masks = this.#maskWords;
    const vectors = this.#blockWords;
    const count = sectors * SECTOR_WORDS - BLOCK_WORDS;
    masks.set(words.subarray(at, at + count), BLOCK_WORDS);
    for (let sector = 0; sector < sectors; sector++) {
      const mask = sector * SECTOR_WORDS;
      const vector = sector * BLOCK_WORDS;
      masks[mask] = vectors[vector] ?? 0;
      masks[mask + 1] = vectors[vector + 1] ?? 0;
      masks[mask + 2] = vectors[vector + 2] ?? 0;
      masks[mask + 3] = vectors[vector + 3] ?? 0;
    }
  }

  /** CBC: a block needs the one before it, so the first blocks of all sectors are done, then the second ones, … */
  #encryptChains(words: Int32Array, at: number, sectors: number): void {
    for (let block = 0; block < SECTOR_BLOCKS; block++) {
      gatherBlocks(words, at + block * BLOCK_WORDS, sectors, this.#blockWords);
      this.#aes.encrypt(this.#blocks, 0, sectors * AES_BLOCK_SIZE);
      scatterBlocks(words, at + block * BLOCK_WORDS, sectors, this.#blockWords);
    }
  }

  #addCounters(words: Int32Array, at: number, sectors: number): void {
    makeCounters(this.#masks.view, sectors, this.#blocks.view);
    this.#aes.encrypt(this.#masks, 0, sectors * CRYPT_SECTOR_SIZE);
    addMasks(words, at, sectors * SECTOR_WORDS, this.#maskWords);
  }
}

/** XTS: the tweak of each block is that of the one before, times x. They are kept as masks. */
function addTweaks(
  words: Int32Array,
  start: number,
  sectors: number,
  tweaks: Int32Array,
  masks: Int32Array,
): void {
  let at = start;
  let mask = 0;
  for (let sector = 0; sector < sectors; sector++) {
    let a = tweaks[sector * BLOCK_WORDS] ?? 0;
    let b = tweaks[sector * BLOCK_WORDS + 1] ?? 0;
    let c = tweaks[sector * BLOCK_WORDS + 2] ?? 0;
    let d = tweaks[sector * BLOCK_WORDS + 3] ?? 0;
    for (let block = 0; block < SECTOR_BLOCKS; block++) {
      masks[mask] = a;
      masks[mask + 1] = b;
      masks[mask + 2] = c;
      masks[mask + 3] = d;
      words[at] = (words[at] ?? 0) ^ a;
      words[at + 1] = (words[at + 1] ?? 0) ^ b;
      words[at + 2] = (words[at + 2] ?? 0) ^ c;
      words[at + 3] = (words[at + 3] ?? 0) ^ d;
      mask += BLOCK_WORDS;
      at += BLOCK_WORDS;
      const carry = (d >> 31) & XTS_POLYNOMIAL;
      d = (d << 1) | (c >>> 31);
      c = (c << 1) | (b >>> 31);
      b = (b << 1) | (a >>> 31);
      a = (a << 1) ^ carry;
    }
  }
}

function addMasks(words: Int32Array, start: number, count: number, masks: Int32Array): void {
  for (let index = 0; index < count; index++) {
    words[start + index] = (words[start + index] ?? 0) ^ (masks[index] ?? 0);
  }
}

/** Add a block of each sector to the one that was encrypted before it. */
function gatherBlocks(words: Int32Array, start: number, sectors: number, chains: Int32Array): void {
  let at = start;
  for (let chain = 0; chain < sectors * BLOCK_WORDS; chain += BLOCK_WORDS) {
    chains[chain] = (chains[chain] ?? 0) ^ (words[at] ?? 0);
    chains[chain + 1] = (chains[chain + 1] ?? 0) ^ (words[at + 1] ?? 0);
    chains[chain + 2] = (chains[chain + 2] ?? 0) ^ (words[at + 2] ?? 0);
    chains[chain + 3] = (chains[chain + 3] ?? 0) ^ (words[at + 3] ?? 0);
    at += SECTOR_WORDS;
  }
}

/** Put them where they came from, encrypted. */
function scatterBlocks(
  words: Int32Array,
  start: number,
  sectors: number,
  chains: Int32Array,
): void {
  let at = start;
  for (let chain = 0; chain < sectors * BLOCK_WORDS; chain += BLOCK_WORDS) {
    words[at] = chains[chain] ?? 0;
    words[at + 1] = chains[chain + 1] ?? 0;
    words[at + 2] = chains[chain + 2] ?? 0;
    words[at + 3] = chains[chain + 3] ?? 0;
    at += SECTOR_WORDS;
  }
}

/** CTR: the vector is a big-endian number, to which the index of the block is added. */
function makeCounters(masks: DataView, sectors: number, vectors: DataView): void {
  for (let sector = 0; sector < sectors; sector++) {
    const vector = sector * AES_BLOCK_SIZE;
    for (let block = 0; block < SECTOR_BLOCKS; block++) {
      const mask = sector * CRYPT_SECTOR_SIZE + block * AES_BLOCK_SIZE;
      let carry = block;
      for (let word = AES_BLOCK_SIZE - WORD_SIZE; word >= 0; word -= WORD_SIZE) {
        const sum = vectors.getUint32(vector + word) + carry;
        masks.setUint32(mask + word, sum);
        carry = sum > 0xffff_ffff ? 1 : 0;
      }
    }
  }
}

/** The words of a buffer that starts at a word. */
function wordsOf({ bytes }: NativeBuffer): Int32Array {
  return new Int32Array(bytes.buffer, bytes.byteOffset, Math.floor(bytes.length / WORD_SIZE));
}
