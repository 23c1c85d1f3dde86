// Seeded randomness: the same TSIMGFS_TEST_SEED gives the same images and the same reads.

/** Seed of this run. vitest.config.ts chooses one if the environment has none; failures print it. */
export const SEED: number = Number(process.env["TSIMGFS_TEST_SEED"] ?? "1") >>> 0;

/** A small generator (mulberry32): good enough to vary tests, not for more. */
export class Random {
  #state: number;

  /** @param label makes a stream of its own, so that adding a test does not change the others */
  constructor(label: string, seed: number = SEED) {
    let hash = seed ^ 0x811c_9dc5;
    for (const character of label) {
      hash = Math.imul(hash ^ (character.codePointAt(0) ?? 0), 0x0100_0193);
    }
    this.#state = hash >>> 0;
  }

  /** An integer, 0 <= result < 2^32. */
  u32(): number {
    this.#state = (this.#state + 0x6d2b_79f5) >>> 0;
    let word = this.#state;
    word = Math.imul(word ^ (word >>> 15), word | 1);
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
    return (word ^ (word >>> 14)) >>> 0;
  }

  /** An integer, 0 <= result < limit; limit may pass 2^32. */
  below(limit: number): number {
    return Math.floor(((this.u32() * 0x20_0000 + (this.u32() >>> 11)) / 2 ** 53) * limit);
  }

  /** An integer, first <= result <= last. */
  between(first: number, last: number): number {
    return first + this.below(last - first + 1);
  }

  pick<T>(choices: readonly [T, ...T[]]): T {
    return choices[this.below(choices.length)] ?? choices[0];
  }

  /** Bytes that do not compress. */
  bytes(size: number): Buffer {
    const bytes = Buffer.alloc(size);
    for (let offset = 0; offset + 4 <= size; offset += 4) {
      bytes.writeUInt32LE(this.u32(), offset);
    }
    for (let offset = size - (size % 4); offset < size; offset++) {
      bytes[offset] = this.u32();
    }
    return bytes;
  }

  /** Bytes that compress to about a third. */
  text(size: number): Buffer {
    const bytes = this.bytes(size);
    for (let offset = 0; offset < size; offset++) {
      bytes[offset] = 0x61 + (bytes.readUInt8(offset) & 7);
    }
    return bytes;
  }
}
