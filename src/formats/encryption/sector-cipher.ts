/**
 * Encrypting and decrypting sectors, many at a time and in place. OpenSSL's own modes take a call or two
 * for each sector, and have no XTS with AES-192; here, the cipher goes over a whole batch in one call, and
 * what a mode adds are exclusive ors of words (native-notes/encryption.md has the numbers).
 */

import assert from "node:assert";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { BlockCipher } from "./block-cipher.ts";
import { ALGORITHMS, type CipherSuite, keysOf, XTS_BLOCK_SIZE } from "./cipher-suite.ts";
import { SectorVectors } from "./sector-vectors.ts";

/** What is encrypted under one initialisation vector, bytes. */
export const CRYPT_SECTOR_SIZE = 512;
/** Bytes of a batch: with what they are combined with, they stay in the caches of the processor. */
const BATCH_SIZE = 64 * 1024;

const WORD_SIZE = Int32Array.BYTES_PER_ELEMENT;
const SECTOR_WORDS = CRYPT_SECTOR_SIZE / WORD_SIZE;
const BATCH_SECTORS = BATCH_SIZE / CRYPT_SECTOR_SIZE;
const XTS_WORDS = XTS_BLOCK_SIZE / WORD_SIZE;
const XTS_SECTOR_BLOCKS = CRYPT_SECTOR_SIZE / XTS_BLOCK_SIZE;
/** x^128 = x^7 + x^2 + x + 1 in the field of XTS tweaks. Source: IEEE 1619, 5.2. */
const XTS_POLYNOMIAL = 0x87;

export class SectorCipher {
  readonly #suite: CipherSuite;
  /** Bytes. */
  readonly #blockSize: number;
  readonly #cipher: BlockCipher;
  /** Of XTS: what encrypts the tweaks. */
  readonly #tweakCipher: BlockCipher | undefined;
  readonly #vectors: SectorVectors;
  /** Vectors of a batch, or one block of each of its sectors. */
  readonly #blocks: NativeBuffer;
  readonly #blockWords: Int32Array;
  /** What the sectors of a batch are combined with. */
  readonly #masks = NativeBuffer.allocate(BATCH_SIZE);
  readonly #maskWords = wordsOf(this.#masks);
  /** The buffer that was used last, and its words: most often it is the next one too. */
  #buffer: NativeBuffer | undefined;
  #words: Int32Array = new Int32Array(0);

  /**
   * @param key of `suite.keyBytes`; not used any more afterwards
   * @throws {UnsupportedError} there is no libcrypto, or it has no such cipher
   */
  constructor(suite: CipherSuite, key: Uint8Array) {
    assert(key.length === suite.keyBytes, "a key of another size");
    this.#suite = suite;
    const { algorithm, mode } = suite;
    const size = key.length / keysOf(mode);
    this.#blockSize = ALGORITHMS[algorithm].blockSize;
    this.#cipher = new BlockCipher(algorithm, key.subarray(0, size));
    this.#tweakCipher = mode === "xts" ? new BlockCipher(algorithm, key.subarray(size)) : undefined;
    this.#blocks = NativeBuffer.allocate(BATCH_SECTORS * this.#blockSize);
    this.#blockWords = wordsOf(this.#blocks);
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

  /** Leave nothing of the key, and of what was encrypted last, in memory. It is not used any more. */
  free(): void {
    this.#cipher.free();
    this.#tweakCipher?.free();
    this.#vectors.free();
    this.#blocks.bytes.fill(0);
    this.#masks.bytes.fill(0);
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
    this.#cipher.encrypt(buffer, start, bytes);
    if (mode === "xts") addMasks(words, at, bytes / WORD_SIZE, this.#maskWords);
  }

  #decryptBatch(buffer: NativeBuffer, words: Int32Array, start: number, bytes: number): void {
    const { mode } = this.#suite;
    const at = start / WORD_SIZE;
    const sectors = bytes / CRYPT_SECTOR_SIZE;
    if (mode === "xts") addTweaks(words, at, sectors, this.#blockWords, this.#maskWords);
    else if (mode === "cbc") this.#keepChains(words, at, sectors);
    this.#cipher.decrypt(buffer, start, bytes);
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
    this.#tweakCipher?.encrypt(this.#blocks, 0, sectors * this.#blockSize);
  }

  /** CBC: what each block will be combined with is the block before it, or the vector. */
  #keepChains(words: Int32Array, at: number, sectors: number): void {
    const blockWords = this.#blockSize / WORD_SIZE;
    const masks = this.#maskWords;
    const vectors = this.#blockWords;
    const count = sectors * SECTOR_WORDS - blockWords;
    masks.set(words.subarray(at, at + count), blockWords);
    let vector = 0;
    for (let sector = 0; sector < sectors; sector++) {
      const mask = sector * SECTOR_WORDS;
      for (let word = 0; word < blockWords; word++) masks[mask + word] = vectors[vector++] ?? 0;
    }
  }

  /** CBC: a block needs the one before it, so the first blocks of all sectors are done, then the second ones, … */
  #encryptChains(words: Int32Array, at: number, sectors: number): void {
    const blockWords = this.#blockSize / WORD_SIZE;
    for (let first = at; first < at + SECTOR_WORDS; first += blockWords) {
      gatherBlocks(words, first, sectors, this.#blockWords, blockWords);
      this.#cipher.encrypt(this.#blocks, 0, sectors * this.#blockSize);
      scatterBlocks(words, first, sectors, this.#blockWords, blockWords);
    }
  }

  #addCounters(words: Int32Array, at: number, sectors: number): void {
    makeCounters(this.#masks.view, sectors, this.#blocks.view, this.#blockSize);
    this.#cipher.encrypt(this.#masks, 0, sectors * CRYPT_SECTOR_SIZE);
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
    let a = tweaks[sector * XTS_WORDS] ?? 0;
    let b = tweaks[sector * XTS_WORDS + 1] ?? 0;
    let c = tweaks[sector * XTS_WORDS + 2] ?? 0;
    let d = tweaks[sector * XTS_WORDS + 3] ?? 0;
    for (let block = 0; block < XTS_SECTOR_BLOCKS; block++) {
      masks[mask] = a;
      masks[mask + 1] = b;
      masks[mask + 2] = c;
      masks[mask + 3] = d;
      words[at] = (words[at] ?? 0) ^ a;
      words[at + 1] = (words[at + 1] ?? 0) ^ b;
      words[at + 2] = (words[at + 2] ?? 0) ^ c;
      words[at + 3] = (words[at + 3] ?? 0) ^ d;
      mask += XTS_WORDS;
      at += XTS_WORDS;
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
function gatherBlocks(
  words: Int32Array,
  start: number,
  sectors: number,
  chains: Int32Array,
  blockWords: number,
): void {
  let at = start;
  let chain = 0;
  for (let sector = 0; sector < sectors; sector++) {
    // Blocks are pairs of words; by single words, this would cost a third of the speed of CBC.
    for (let word = at; word < at + blockWords; word += 2) {
      chains[chain] = (chains[chain] ?? 0) ^ (words[word] ?? 0);
      chains[chain + 1] = (chains[chain + 1] ?? 0) ^ (words[word + 1] ?? 0);
      chain += 2;
    }
    at += SECTOR_WORDS;
  }
}

/** Put them where they came from, encrypted. */
function scatterBlocks(
  words: Int32Array,
  start: number,
  sectors: number,
  chains: Int32Array,
  blockWords: number,
): void {
  let at = start;
  let chain = 0;
  for (let sector = 0; sector < sectors; sector++) {
    for (let word = at; word < at + blockWords; word += 2) {
      words[word] = chains[chain] ?? 0;
      words[word + 1] = chains[chain + 1] ?? 0;
      chain += 2;
    }
    at += SECTOR_WORDS;
  }
}

/** CTR: the vector is a big-endian number, to which the index of the block is added. */
function makeCounters(
  masks: DataView,
  sectors: number,
  vectors: DataView,
  blockSize: number,
): void {
  const sectorBlocks = CRYPT_SECTOR_SIZE / blockSize;
  for (let sector = 0; sector < sectors; sector++) {
    const vector = sector * blockSize;
    for (let block = 0; block < sectorBlocks; block++) {
      const mask = sector * CRYPT_SECTOR_SIZE + block * blockSize;
      let carry = block;
      for (let word = blockSize - WORD_SIZE; word >= 0; word -= WORD_SIZE) {
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
