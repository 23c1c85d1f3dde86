/** A local file that several threads write to, each of whose changes is noted in a log that they share. */

import { LocalFile, type SharedFile } from "../../src/storage/local-file.ts";
import type { HostRun, WritableStorage } from "../../src/storage/storage.ts";
import type { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import type { Random } from "./random.ts";
import type { SharedLog } from "./shared-log.ts";

/** A call waits this long at the most, milliseconds, for others to get in between. */
const PAUSE_MAX_MS = 2;
/** One of so many changes waits; each sync does. */
const PAUSE_EVERY = 6;

class LoggedFile implements WritableStorage {
  readonly path: string;
  readonly length: number;
  readonly resizable: boolean;
  readonly #file: LocalFile;
  readonly #log: SharedLog;
  readonly #number: number;
  readonly #random: Random;
  readonly #never = new Int32Array(new SharedArrayBuffer(4));

  /**
   * @param number of the file in the log
   * @param random of this thread: how long calls take
   */
  constructor(file: SharedFile, log: SharedLog, number: number, random: Random) {
    this.#file = new LocalFile(file);
    this.path = file.path;
    this.length = file.length;
    this.resizable = file.resizable;
    this.#log = log;
    this.#number = number;
    this.#random = random;
  }

  readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    this.#file.readAt(target, start, length, offset);
  }

  allocatedSize(): number {
    return this.#file.allocatedSize();
  }

  hostRun(offset: number, out: HostRun): void {
    this.#file.hostRun(offset, out);
  }

  isHole(offset: number, length: number): boolean {
    return this.#file.isHole(offset, length);
  }

  currentLength(): number {
    return this.#file.currentLength();
  }

  writeAt(source: NativeBuffer, start: number, length: number, offset: number): void {
    this.#mayPause();
    this.#log.perform(() => {
      this.#file.writeAt(source, start, length, offset);
      const data = source.bytes.slice(start, start + length);
      return { kind: "write", file: this.#number, offset, data };
    });
  }

  zeroAt(offset: number, length: number, space: "release" | "keep"): void {
    this.#mayPause();
    this.#log.perform(() => {
      const count = Math.min(length, this.#file.currentLength() - offset);
      if (count <= 0) return undefined;
      this.#file.zeroAt(offset, count, space);
      return { kind: "zero", file: this.#number, offset, length: count };
    });
  }

  preallocate(offset: number, length: number): void {
    if (offset + length > this.currentLength()) this.setLength(offset + length);
  }

  setLength(length: number): void {
    this.#mayPause();
    this.#log.perform(() => {
      this.#file.setLength(length);
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
