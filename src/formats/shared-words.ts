/**
 * What the writers of an image share besides tables: flags by Atomics, and numbers under a lock. The words of
 * all formats that reserve ahead:
 *
 *     CORRUPT          1: the image was found corrupt, nothing is written any more
 *     SYNC_FAILED      1: the host could not make something durable; from then on no cluster changes its owner
 *     BEGUN            1: autoclear bits of what is not kept up are cleared
 *     LEAKS            1: something failed half-way: some clusters may belong to nothing
 *     WANTED           1: another thread was asked to maintain the image
 *     STRUCTURE_MUTEX  whoever reserves clusters, changes refcounts or the header
 */

export const WRITER_WORD = {
  corrupt: 0,
  syncFailed: 1,
  begun: 2,
  leaks: 3,
  wanted: 4,
  structureMutex: 5,
} as const;
/** Words from here on are a format's own. */
export const FORMAT_WORD = 6;

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
