/** Comparing two disks, in steps: what QEMU calls equal, and where they are not. */

import { NO_OFFSET } from "../../formats/driver.ts";
import { memcmp } from "../../syscalls/libc.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { isZero } from "../../syscalls/zeros.ts";
import { BlockStatus } from "../block-status.ts";
import type { Disk } from "../disk.ts";

/** Compared at once, bytes. */
const PIECE_SIZE = 2 * 1024 * 1024;
/** Runs that need not be read are passed over so many in a step. */
const PASSED_MAX = 4096;
const SECTOR_SIZE = 512;

/** What differs at an offset. */
export interface Difference {
  readonly kind: "size" | "status" | "content";
  /** Bytes; of contents, where the sector starts. */
  readonly offset: number;
}

/** A disk with what was found out about it. */
interface Side {
  readonly disk: Disk;
  readonly size: number;
  readonly status: BlockStatus;
  readonly buffer: NativeBuffer;
}

export class DiskComparison {
  /** Bytes of the longer disk. */
  readonly total: number;
  done = 0;
  /** Undefined: no difference so far. */
  difference: Difference | undefined;
  readonly #sides: readonly [Side, Side];
  readonly #strict: boolean;

  /** @param strict sizes and what is allocated must be equal too */
  constructor(first: Disk, second: Disk, strict: boolean) {
    const sideOf = (disk: Disk): Side => ({
      disk,
      size: disk.virtualSize,
      status: new BlockStatus(),
      buffer: NativeBuffer.allocate(PIECE_SIZE),
    });
    this.#sides = [sideOf(first), sideOf(second)];
    this.#strict = strict;
    const [{ size: firstSize }, { size: secondSize }] = this.#sides;
    this.total = Math.max(firstSize, secondSize);
    if (strict && firstSize !== secondSize) this.difference = { kind: "size", offset: 0 };
  }

  /** Where one disk ends, no difference was found, and the other one goes on. */
  get passedShorter(): boolean {
    const [first, second] = this.#sides;
    const offset = this.difference?.offset ?? this.total;
    return first.size !== second.size && offset >= Math.min(first.size, second.size);
  }

  /**
   * Compare the next bytes.
   *
   * @returns whether the end is reached, or a difference
   * @throws {CorruptionError | StorageError} one of them cannot be read
   */
  step(): boolean {
    for (let passed = 0; passed < PASSED_MAX; passed++) {
      if (this.difference !== undefined || this.done >= this.total) return true;
      if (this.#compareNext()) break;
    }
    return this.difference !== undefined || this.done >= this.total;
  }

  /** Returns whether it had to read. */
  #compareNext(): boolean {
    const [first, second] = this.#sides;
    const left = this.#look(first);
    const right = this.#look(second);
    const length = Math.min(left, right);
    const isBoth = this.done < first.size && this.done < second.size;
    if (this.#strict && isBoth && !isAlike(first.status, second.status)) {
      this.difference = { kind: "status", offset: this.done };
      return false;
    }
    const readers = this.#sides.filter(({ status }) => !status.zero);
    if (readers.length === 0) {
      this.done += length;
      return false;
    }
    const count = Math.min(length, PIECE_SIZE);
    for (const { disk, buffer } of readers) disk.read(this.done, count, buffer, 0);
    const equal =
      readers.length === 2
        ? equalBytes(first.buffer, second.buffer, count)
        : zeroBytes(readers[0]?.buffer ?? first.buffer, count);
    if (equal < count) this.difference = { kind: "content", offset: this.done + equal };
    this.done += count;
    return true;
  }

  /** Find out what is next on a disk; past its end there are zeros. Returns how far that holds. */
  #look({ disk, size, status }: Side): number {
    if (this.done >= size) {
      status.zero = true;
      return this.total - this.done;
    }
    disk.statusAt(this.done, size - this.done, status);
    return Math.min(status.length, size - this.done);
  }
}

/** What QEMU calls one block status. */
function isAlike(a: BlockStatus, b: BlockStatus): boolean {
  return (
    a.data === b.data &&
    a.zero === b.zero &&
    a.present === b.present &&
    a.compressed === b.compressed &&
    (a.hostOffset === NO_OFFSET) === (b.hostOffset === NO_OFFSET)
  );
}

/** Bytes of whole sectors from the start on that are equal. */
function equalBytes(a: NativeBuffer, b: NativeBuffer, length: number): number {
  if (memcmp(a.address, b.address, length) === 0) return length;
  let done = 0;
  while (done < length) {
    const count = Math.min(SECTOR_SIZE, length - done);
    if (memcmp(a.address + done, b.address + done, count) !== 0) return done;
    done += count;
  }
  return length;
}

/** Bytes of whole sectors from the start on that are zeros. */
function zeroBytes(buffer: NativeBuffer, length: number): number {
  if (isZero(buffer, 0, length)) return length;
  let done = 0;
  while (done < length && isZero(buffer, done, Math.min(SECTOR_SIZE, length - done))) {
    done += SECTOR_SIZE;
  }
  return done;
}
