/**
 * A file whose text is made when it is opened: NAME.stats.json, metrics. It is kept in an anonymous file, so that
 * any thread can then read it by its handle.
 */

import assert from "node:assert";
import fs from "node:fs";
import { TsimgfsError } from "../errors.ts";
import { errnoCode } from "../syscalls/errno-names.ts";
import { errno, memfdCreate, pread } from "../syscalls/libc.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { Capacity, FileNode, NodeAttributes, OpenFile } from "./node.ts";

const MFD_CLOEXEC = 1;
const BLOCK_SIZE = 4096;

/** Makes the text: all of it, or what costs nothing, without what is counted in the image's tables. */
export type Render = (what: "all" | "cheap") => string;

/*
 * Words shared by all threads for one such file, of the text that was opened last: its bytes, and when it was
 * opened, seconds since 1970. Both 0: there was none.
 */
const LAST_SIZE = 0;
const LAST_OPENED = 1;
export const RENDERED_FILE_WORDS = 2;
const MS_PER_SECOND = 1000;

export class RenderedFile implements FileNode {
  readonly kind = "file";
  readonly nodeid: number;
  readonly isWritable = false;
  readonly #render: Render;
  readonly #shared: Int32Array;

  /** @param shared `RENDERED_FILE_WORDS` words of shared memory, 0 at first */
  constructor(nodeid: number, shared: Int32Array, render: Render) {
    this.nodeid = nodeid;
    this.#shared = shared;
    this.#render = render;
  }

  attributes(): NodeAttributes {
    // Of the text that was opened last: who opens it and then asks gets what he will read, and what does not
    // change while he reads; tar insists on that.
    const lastSize = Atomics.load(this.#shared, LAST_SIZE);
    const lastOpened = Atomics.load(this.#shared, LAST_OPENED) >>> 0;
    return {
      nodeid: this.nodeid,
      isDirectory: false,
      isWritable: false,
      size: lastSize > 0 ? lastSize : this.#sizeBeforeOpening(),
      blocks: 0,
      blockSize: BLOCK_SIZE,
      modifiedAt: lastOpened > 0 ? lastOpened : Date.now() / MS_PER_SECOND,
      links: 1,
      validSeconds: 0,
    };
  }

  capacity(): Capacity {
    return { blockSize: BLOCK_SIZE, size: 0 };
  }

  xattrs(): ReadonlyMap<string, string> {
    return NO_XATTRS;
  }

  setXattr(): boolean {
    return false;
  }

  open(): OpenFile {
    const text = Buffer.from(this.#render("all"));
    const handle = memfdCreate("tsimgfs", MFD_CLOEXEC);
    if (handle < 0) throw failed("memfd_create");
    fs.writeSync(handle, text);
    Atomics.store(this.#shared, LAST_OPENED, Math.floor(Date.now() / MS_PER_SECOND));
    Atomics.store(this.#shared, LAST_SIZE, text.length);
    return { handle, directIo: true, keepCache: false };
  }

  release(handle: number): void {
    fs.closeSync(handle);
  }

  read(
    handle: number,
    offset: number,
    length: number,
    target: NativeBuffer,
    start: number,
  ): number {
    const count = pread(handle, target.address + start, length, offset);
    if (count < 0) throw failed("read");
    return count;
  }

  write(): never {
    assert.fail(READ_ONLY);
  }

  allocateRange(): never {
    assert.fail(READ_ONLY);
  }

  sync(): void {
    // Nothing is ever written.
  }

  setSize(): boolean {
    return false;
  }

  seek(offset: number, what: "data" | "hole"): number {
    const size = Atomics.load(this.#shared, LAST_SIZE);
    if (offset >= size) return -1;
    return what === "data" ? offset : size;
  }

  /**
   * Whoever only lists the directory does not make us look at all of an image. More than the text will have, in
   * whole blocks, as sysfs says of its files: who believes in it loses nothing.
   */
  #sizeBeforeOpening(): number {
    const cheap = Buffer.byteLength(this.#render("cheap"));
    return Math.ceil((cheap * 2) / BLOCK_SIZE + 1) * BLOCK_SIZE;
  }
}

const READ_ONLY = "a file of statistics is read-only";

const NO_XATTRS: ReadonlyMap<string, string> = new Map();

function failed(call: string): TsimgfsError {
  return new TsimgfsError(errnoCode(errno()), "stats.json", `${call} failed`);
}
