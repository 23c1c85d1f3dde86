/** Local files whose changes are noted, and fail where a test wants it: each file as the disk has it. */

import type { AttachFile } from "../../src/block/attach-disk.ts";
import { type Errno, StorageError } from "../../src/errors.ts";
import type { SharedFile } from "../../src/storage/local-file.ts";
import type { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { WrappedFile } from "./wrapped-file.ts";

/** What a host writes as a whole or not at all, bytes. */
const SECTOR_SIZE = 512;

/** One call that changes a file, or makes it durable. */
export interface Call {
  readonly kind: "write" | "zero" | "preallocate" | "length" | "sync";
  readonly path: string;
  readonly offset: number;
  readonly length: number;
}

/**
 * What becomes of a call: it is made, it fails, or it fails after the first half of it was made, whole
 * sectors of the file.
 */
export type Outcome = "works" | { readonly code: Errno; readonly half?: boolean };

/** Decides about a call, which is the `index`th of all. */
export type Faults = (call: Call, index: number) => Outcome;

/** Which call fails, and in which way. */
export const FAULT_WAYS: readonly {
  readonly name: string;
  readonly faults: (n: number) => Faults;
}[] = [
  {
    name: "once, without space",
    faults: (n) => (_, index) => (index === n ? { code: "ENOSPC" } : "works"),
  },
  {
    name: "once, half done",
    faults: (n) => (_, index) => (index === n ? { code: "EIO", half: true } : "works"),
  },
  {
    name: "from then on",
    faults: (n) => (_, index) => (index >= n ? { code: "EIO" } : "works"),
  },
  {
    name: "from then on, but for a sync, without space",
    faults: (n) => (call, index) =>
      index >= n && call.kind !== "sync" ? { code: "ENOSPC", half: true } : "works",
  },
];

/** A call that only looks. */
export type Read = Omit<Call, "kind">;

/** All files of a disk; calls are counted over all of them. */
export class FaultyFiles {
  readonly calls: Call[] = [];
  faults: Faults;
  /** Noted apart from those that change something. */
  readonly reads: Read[] = [];
  readFaults: (read: Read) => Outcome = () => "works";

  constructor(faults: Faults = () => "works") {
    this.faults = faults;
  }

  readonly attach: AttachFile = (file) => new FaultyFile(file, this);

  /** Notes a call and decides about it. */
  decide(call: Call): Outcome {
    this.calls.push(call);
    return this.faults(call, this.calls.length - 1);
  }

  decideRead(read: Read): Outcome {
    this.reads.push(read);
    return this.readFaults(read);
  }
}

class FaultyFile extends WrappedFile {
  readonly #files: FaultyFiles;

  constructor(file: SharedFile, files: FaultyFiles) {
    super(file);
    this.#files = files;
  }

  override readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    const outcome = this.#files.decideRead({ path: this.path, offset, length });
    if (outcome !== "works") {
      throw new StorageError(outcome.code, this.path, `read failed: ${outcome.code}`, { offset });
    }
    this.file.readAt(target, start, length, offset);
  }

  writeAt(source: NativeBuffer, start: number, length: number, offset: number): void {
    this.#call("write", offset, length, (count) => {
      this.file.writeAt(source, start, count, offset);
    });
  }

  zeroAt(offset: number, length: number, space: "release" | "keep"): void {
    this.#call("zero", offset, length, (count) => this.file.zeroAt(offset, count, space));
  }

  preallocate(offset: number, length: number): void {
    this.#call("preallocate", offset, length, (count) => this.file.preallocate(offset, count));
  }

  setLength(length: number): void {
    // A length changes as a whole or not at all.
    this.#call("length", 0, length, (count) => {
      if (count === length) this.file.setLength(length);
    });
  }

  sync(): void {
    this.#call("sync", 0, 0, () => this.file.sync());
  }

  #call(kind: Call["kind"], offset: number, length: number, make: (length: number) => void): void {
    const outcome = this.#files.decide({ kind, path: this.path, offset, length });
    if (outcome === "works") {
      make(length);
      return;
    }
    const end = offset + length / 2;
    const half = end - (end % SECTOR_SIZE) - offset;
    if (outcome.half === true && half > 0) make(half);
    throw new StorageError(outcome.code, this.path, `${kind} failed: ${outcome.code}`, { offset });
  }
}
