/**
 * NAME.stats.json: what a device is, what its image consists of, and what has been read of it. The text is
 * made when the file is opened, and kept in an anonymous file: any thread can then read it by its handle.
 */

import assert from "node:assert";
import fs from "node:fs";
import { TsimgfsError } from "../errors.ts";
import { errnoCode } from "../syscalls/errno-names.ts";
import { errno, memfdCreate, pread } from "../syscalls/libc.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { Capacity, FileNode, NodeAttributes, OpenFile } from "./node.ts";
import type { RenderStats } from "./render-stats.ts";

const MFD_CLOEXEC = 1;
const BLOCK_SIZE = 4096;

/** Words shared by all threads for one stats file: bytes of the text that was opened last, or 0. */
const LAST_SIZE = 0;
export const STATS_FILE_WORDS = 1;

export class StatsFile implements FileNode {
  readonly kind = "file";
  readonly nodeid: number;
  readonly isWritable = false;
  readonly #render: RenderStats;
  readonly #shared: Int32Array;

  /** @param shared `STATS_FILE_WORDS` words of shared memory, 0 at first */
  constructor(nodeid: number, shared: Int32Array, render: RenderStats) {
    this.nodeid = nodeid;
    this.#shared = shared;
    this.#render = render;
  }

  attributes(): NodeAttributes {
    // The size is that of the text that was opened last. Whoever only lists the directory does not make
    // us look at all of an image: before the first opening, he sees the size of what costs nothing.
    const lastSize = Atomics.load(this.#shared, LAST_SIZE);
    const size = lastSize > 0 ? lastSize : Buffer.byteLength(this.#render("cheap"));
    return {
      nodeid: this.nodeid,
      isDirectory: false,
      isWritable: false,
      size,
      blocks: 0,
      blockSize: BLOCK_SIZE,
      modifiedAt: Date.now() / 1000,
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
    const handle = memfdCreate("stats.json", MFD_CLOEXEC);
    if (handle < 0) throw failed("memfd_create");
    fs.writeSync(handle, text);
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
    assert.fail("a statistics file is read-only");
  }

  allocateRange(): never {
    assert.fail("a statistics file is read-only");
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
}

const NO_XATTRS: ReadonlyMap<string, string> = new Map();

function failed(call: string): TsimgfsError {
  return new TsimgfsError(errnoCode(errno()), "stats.json", `${call} failed`);
}
