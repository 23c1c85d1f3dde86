/** What the writers of an image share besides tables: flags by Atomics, and numbers under a lock. */

export class SharedWords {
  readonly words: Int32Array;
  readonly numbers: Float64Array;

  /** @param memory words first, then numbers; whatever follows is of others */
  constructor(memory: SharedArrayBuffer, { words, numbers }: { words: number; numbers: number }) {
    this.words = new Int32Array(memory, 0, words);
    this.numbers = new Float64Array(memory, words * Int32Array.BYTES_PER_ELEMENT, numbers);
  }

  get(number: number): number {
    return this.numbers[number] ?? 0;
  }

  set(number: number, value: number): void {
    this.numbers[number] = value;
  }

  isSet(word: number): boolean {
    return Atomics.load(this.words, word) !== 0;
  }

  raise(word: number): void {
    Atomics.store(this.words, word, 1);
  }
}
