/** What `write` writes: one byte again and again, or a file, from its start again where it ends. */

import fs from "node:fs";
import { errnoText, nodeErrorCode } from "../../syscalls/errno-names.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { IoFailure } from "./failure.ts";

/** Bytes of a file that are read at once. */
const READ_SIZE = 1024 * 1024;

export class WriteSource {
  /** What repeats; not empty. */
  readonly #bytes: Uint8Array;

  private constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  static ofByte(value: number): WriteSource {
    return new WriteSource(Uint8Array.of(value));
  }

  /**
   * The start of a file.
   *
   * @param length bytes that will be needed at the most
   * @throws {IoFailure} it cannot be read, or is empty
   */
  static ofFile(path: string, length: number): WriteSource {
    let bytes: Uint8Array;
    try {
      bytes = readStart(path, length);
    } catch (error) {
      throw new IoFailure({ errors: `${path}: ${errnoText(nodeErrorCode(error))}` });
    }
    if (bytes.length === 0) {
      if (length > 0) throw new IoFailure({ errors: `${path}: file is empty` });
      return WriteSource.ofByte(0);
    }
    const times = Math.ceil(Math.min(READ_SIZE, length) / bytes.length);
    return new WriteSource(Buffer.alloc(bytes.length * times, bytes));
  }

  /** Put `length` bytes into `target`, from byte `skip` of all on. */
  fill(target: NativeBuffer, length: number, skip: number): void {
    const source = this.#bytes;
    if (source.length === 1) {
      target.bytes.fill(source[0] ?? 0, 0, length);
      return;
    }
    for (let done = 0; done < length; ) {
      const from = (skip + done) % source.length;
      const count = Math.min(source.length - from, length - done);
      target.bytes.set(source.subarray(from, from + count), done);
      done += count;
    }
  }
}

/** Also of what is no regular file, and so has no length. */
function readStart(path: string, length: number): Uint8Array {
  const fd = fs.openSync(path, "r");
  try {
    const parts: Uint8Array[] = [];
    let total = 0;
    while (total < length) {
      const part = new Uint8Array(Math.min(READ_SIZE, length - total));
      const count = fs.readSync(fd, part);
      if (count === 0) break;
      parts.push(part.subarray(0, count));
      total += count;
    }
    return Buffer.concat(parts);
  } finally {
    fs.closeSync(fd);
  }
}
