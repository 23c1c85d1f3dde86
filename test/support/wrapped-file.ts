/** A local file behind a storage of its own: who extends it says what is different from the file. */

import { LocalFile, type SharedFile } from "../../src/storage/local-file.ts";
import type { HostRun, WritableStorage } from "../../src/storage/storage.ts";
import type { NativeBuffer } from "../../src/syscalls/native-buffer.ts";

export abstract class WrappedFile implements WritableStorage {
  readonly path: string;
  readonly length: number;
  readonly resizable: boolean;
  /** Not a base class: what it does by other calls of its own is one call here. */
  protected readonly file: LocalFile;

  constructor(file: SharedFile) {
    this.file = new LocalFile(file);
    this.path = file.path;
    this.length = file.length;
    this.resizable = file.resizable;
  }

  readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    this.file.readAt(target, start, length, offset);
  }

  allocatedSize(): number {
    return this.file.allocatedSize();
  }

  hostRun(offset: number, out: HostRun): void {
    this.file.hostRun(offset, out);
  }

  isHole(offset: number, length: number): boolean {
    return this.file.isHole(offset, length);
  }

  currentLength(): number {
    return this.file.currentLength();
  }

  abstract writeAt(source: NativeBuffer, start: number, length: number, offset: number): void;
  abstract zeroAt(offset: number, length: number, space: "release" | "keep"): void;
  abstract preallocate(offset: number, length: number): void;
  abstract setLength(length: number): void;
  abstract sync(): void;
}
