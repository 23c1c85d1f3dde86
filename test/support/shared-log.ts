/**
 * A log of what several threads do to the files of an image, in one order: it lies in shared memory, and who
 * does something holds its lock until that is noted.
 *
 *     word 0          the lock
 *     word 1          operations
 *     word 2          bytes of data
 *     4 doubles each  kind and file | offset, length or what a sync covers | length | where the data is
 *     bytes           data of writes
 */

import { Mutex } from "../../src/threads/mutex.ts";
import type { LoggedOperation, RecordingLog } from "./recording-storage.ts";

const LOCK_WORD = 0;
const COUNT_WORD = 1;
const BYTES_WORD = 2;
const WORDS = 4;
const RECORD_DOUBLES = 4;
const KINDS = ["write", "zero", "length", "sync"] as const;

/** What a session may do at the most; memory that is not touched costs nothing. */
const OPERATIONS_MAX = 1 << 18;
const BYTES_MAX = 256 * 1024 * 1024;

export class SharedLog {
  readonly #words: Int32Array;
  readonly #records: Float64Array;
  readonly #data: Uint8Array;
  readonly #mutex: Mutex;

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory, 0, WORDS);
    const records = WORDS * Int32Array.BYTES_PER_ELEMENT;
    this.#records = new Float64Array(memory, records, OPERATIONS_MAX * RECORD_DOUBLES);
    this.#data = new Uint8Array(memory, records + this.#records.byteLength);
    this.#mutex = new Mutex(this.#words, LOCK_WORD);
  }

  static createMemory(): SharedArrayBuffer {
    const records = OPERATIONS_MAX * RECORD_DOUBLES * Float64Array.BYTES_PER_ELEMENT;
    return new SharedArrayBuffer(WORDS * Int32Array.BYTES_PER_ELEMENT + records + BYTES_MAX);
  }

  /** Operations so far. */
  get count(): number {
    return Atomics.load(this.#words, COUNT_WORD);
  }

  /** Do something that changes a file, and note it; nobody else changes one meanwhile. */
  perform(action: () => LoggedOperation | undefined): void {
    this.#mutex.lock();
    try {
      const operation = action();
      if (operation !== undefined) this.#append(operation);
    } finally {
      this.#mutex.unlock();
    }
  }

  #append(operation: LoggedOperation): void {
    const count = this.count;
    const start = Atomics.load(this.#words, BYTES_WORD);
    const data = operation.kind === "write" ? operation.data : new Uint8Array();
    if (count === OPERATIONS_MAX || start + data.length > BYTES_MAX) {
      throw new RangeError("the log is full: fewer steps must do");
    }
    this.#data.set(data, start);
    const { value, length } = numbersOf(operation, count);
    const kind = KINDS.indexOf(operation.kind);
    const record = [operation.file * KINDS.length + kind, value, length, start];
    this.#records.set(record, count * RECORD_DOUBLES);
    Atomics.store(this.#words, BYTES_WORD, start + data.length);
    Atomics.store(this.#words, COUNT_WORD, count + 1);
  }

  /** All operations, when no thread is at work any more. */
  read(): RecordingLog {
    return { operations: Array.from({ length: this.count }, (_, index) => this.#at(index)) };
  }

  #at(index: number): LoggedOperation {
    const at = index * RECORD_DOUBLES;
    const [code = 0, value = 0, length = 0, start = 0] = this.#records.subarray(
      at,
      at + RECORD_DOUBLES,
    );
    const file = Math.floor(code / KINDS.length);
    switch (KINDS[code % KINDS.length]) {
      case "write":
        return {
          kind: "write",
          file,
          offset: value,
          data: this.#data.slice(start, start + length),
        };
      case "zero":
        return { kind: "zero", file, offset: value, length };
      case "length":
        return { kind: "length", file, length: value };
      default:
        return { kind: "sync", file, covers: value };
    }
  }
}

function numbersOf(operation: LoggedOperation, count: number): { value: number; length: number } {
  switch (operation.kind) {
    case "write":
      return { value: operation.offset, length: operation.data.length };
    case "zero":
      return { value: operation.offset, length: operation.length };
    case "length":
      return { value: operation.length, length: 0 };
    case "sync":
      return { value: operation.covers ?? count, length: 0 };
  }
}
