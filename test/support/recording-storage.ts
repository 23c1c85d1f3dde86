/** A writable file in memory that notes down each change of it, and each sync, in a log. */

import { StorageError } from "../../src/errors.ts";
import type { HostRun, WritableStorage } from "../../src/storage/storage.ts";
import type { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { PAGE_SIZE, type SparseFile } from "./recording-sparse-file.ts";

/** One call that changed a file, or made it durable. `file` is the number of the file in the log. */
export type LoggedOperation =
  | { readonly kind: "write"; readonly file: number; readonly offset: number; data: Uint8Array }
  | {
      readonly kind: "zero";
      readonly file: number;
      readonly offset: number;
      readonly length: number;
    }
  | { readonly kind: "length"; readonly file: number; readonly length: number }
  | {
      readonly kind: "sync";
      readonly file: number;
      /** Where the log stood when it began: what came later may be lost. Default: it took no time. */
      readonly covers?: number;
    };

/** What happened to the files of one image, in one order. */
export interface RecordingLog {
  readonly operations: LoggedOperation[];
}

/** How a call fails: a write may have written a part. */
export interface Fault {
  readonly code: "ENOSPC" | "EIO";
  /** Bytes that were written. */
  readonly written: number;
}

/** Decides whether a call fails. */
export type FaultHook = (operation: LoggedOperation) => Fault | undefined;

export class RecordingStorage implements WritableStorage {
  readonly path: string;
  readonly length: number;
  readonly resizable = true;
  /** What the file contains now. */
  readonly content: SparseFile;
  readonly #file: number;
  readonly #log: RecordingLog;
  readonly #faultOf: FaultHook;

  /**
   * @param content changed by this object from now on
   * @param file the number of the file in the log
   */
  constructor(
    path: string,
    content: SparseFile,
    log: RecordingLog,
    file: number,
    faultOf: FaultHook = () => undefined,
  ) {
    this.path = path;
    this.length = content.length;
    this.content = content;
    this.#log = log;
    this.#file = file;
    this.#faultOf = faultOf;
  }

  readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    this.content.read(offset, target.bytes.subarray(start, start + length));
  }

  writeAt(source: NativeBuffer, start: number, length: number, offset: number): void {
    const data = source.bytes.slice(start, start + length);
    this.#note({ kind: "write", file: this.#file, offset, data });
    this.content.write(offset, data);
  }

  zeroAt(offset: number, length: number, _space: "release" | "keep"): void {
    const count = Math.min(length, this.content.length - offset);
    if (count <= 0) return;
    this.#note({ kind: "zero", file: this.#file, offset, length: count });
    this.content.zero(offset, count);
  }

  preallocate(offset: number, length: number): void {
    if (offset + length > this.content.length) this.setLength(offset + length);
  }

  setLength(length: number): void {
    this.#note({ kind: "length", file: this.#file, length });
    this.content.setLength(length);
  }

  sync(): void {
    this.#note({ kind: "sync", file: this.#file });
  }

  currentLength(): number {
    return this.content.length;
  }

  allocatedSize(): number {
    return this.content.allocated;
  }

  hostRun(offset: number, out: HostRun): void {
    const isData = (at: number): boolean =>
      at < this.content.length && this.content.pageAt(at) !== undefined;
    const page = Math.floor(offset / PAGE_SIZE) * PAGE_SIZE;
    out.isData = isData(page);
    let end = page + PAGE_SIZE;
    while (end < this.content.length && isData(end) === out.isData) end += PAGE_SIZE;
    out.length =
      end >= this.content.length && !out.isData ? Number.MAX_SAFE_INTEGER - offset : end - offset;
  }

  isHole(offset: number, length: number): boolean {
    const run: HostRun = { isData: true, length: 0 };
    this.hostRun(offset, run);
    return !run.isData && run.length >= length;
  }

  #note(operation: LoggedOperation): void {
    const fault = this.#faultOf(operation);
    if (fault === undefined) {
      this.#log.operations.push(operation);
      return;
    }
    if (operation.kind === "write" && fault.written > 0) {
      const data = operation.data.subarray(0, fault.written);
      this.#log.operations.push({ ...operation, data });
      this.content.write(operation.offset, data);
    }
    throw new StorageError(fault.code, this.path, `${operation.kind} failed: ${fault.code}`);
  }
}

/** One line on an operation, for messages. */
export function describeOperation(operation: LoggedOperation): string {
  const file = operation.file === 0 ? "image" : `file ${operation.file}`;
  switch (operation.kind) {
    case "write": {
      const { offset, data } = operation;
      const head = Buffer.from(data.subarray(0, 16)).toString("hex");
      return `${file}: write 0x${offset.toString(16)}+0x${data.length.toString(16)} ${head}`;
    }
    case "zero":
      return `${file}: zero 0x${operation.offset.toString(16)}+0x${operation.length.toString(16)}`;
    case "length":
      return `${file}: length 0x${operation.length.toString(16)}`;
    case "sync":
      return operation.covers === undefined
        ? `${file}: sync`
        : `${file}: sync of all before ${operation.covers}`;
  }
}
