/** A local file that several threads write to, each of whose changes is noted in a log that they share. */

import { LocalFile, type SharedFile } from "../../src/storage/local-file.ts";
import type { WritableStorage } from "../../src/storage/storage.ts";
import type { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import type { Random } from "./random.ts";
import type { SharedLog } from "./shared-log.ts";
import { WrappedFile } from "./wrapped-file.ts";

/** A call waits this long at the most, milliseconds, for others to get in between. */
const PAUSE_MAX_MS = 2;
/** One of so many changes waits; each sync does. */
const PAUSE_EVERY = 6;

class LoggedFile extends WrappedFile {
  readonly #log: SharedLog;
  readonly #number: number;
  readonly #random: Random;
  readonly #never = new Int32Array(new SharedArrayBuffer(4));

  /**
   * @param number of the file in the log
   * @param random of this thread: how long calls take
   */
  constructor(file: SharedFile, log: SharedLog, number: number, random: Random) {
    super(file);
    this.#log = log;
    this.#number = number;
    this.#random = random;
  }

  writeAt(source: NativeBuffer, start: number, length: number, offset: number): void {
    this.#mayPause();
    this.#log.perform(() => {
      this.file.writeAt(source, start, length, offset);
      const data = source.bytes.slice(start, start + length);
      return { kind: "write", file: this.#number, offset, data };
    });
  }

  zeroAt(offset: number, length: number, space: "release" | "keep"): void {
    this.#mayPause();
    this.#log.perform(() => {
      const count = Math.min(length, this.file.currentLength() - offset);
      if (count <= 0) return undefined;
      this.file.zeroAt(offset, count, space);
      return { kind: "zero", file: this.#number, offset, length: count };
    });
  }

  preallocate(offset: number, length: number): void {
    if (offset + length > this.currentLength()) this.setLength(offset + length);
  }

  setLength(length: number): void {
    this.#mayPause();
    this.#log.perform(() => {
      this.file.setLength(length);
      return { kind: "length", file: this.#number, length };
    });
  }

  /** What others do while it takes its time is not durable by it. */
  sync(): void {
    const covers = this.#log.count;
    this.#pause();
    this.#log.perform(() => ({ kind: "sync", file: this.#number, covers }));
  }

  #mayPause(): void {
    if (this.#random.below(PAUSE_EVERY) === 0) this.#pause();
  }

  #pause(): void {
    Atomics.wait(this.#never, 0, 0, (this.#random.below(100) / 100) * PAUSE_MAX_MS);
  }
}

/**
 * Attaches the files that a log is of, by their number in it; all others as they are.
 *
 * @param random of this thread
 */
export function attachLogged(
  paths: readonly string[],
  log: SharedLog,
  random: Random,
): (file: SharedFile) => WritableStorage {
  return (file) => {
    const number = paths.indexOf(file.path);
    return number < 0 ? new LocalFile(file) : new LoggedFile(file, log, number, random);
  };
}
