/** Disks of small image files that are written to, and what qemu-img says of them afterwards. */

import fs from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { type AttachFile, attachDisk } from "../../../src/block/attach-disk.ts";
import type { Disk } from "../../../src/block/disk.ts";
import { closeChain, type OpenChain, openChain } from "../../../src/block/open-chain.ts";
import type { WritePolicy } from "../../../src/block/write-policy.ts";
import { ClusterCache } from "../../../src/formats/compression/cluster-cache.ts";
import type { FormatName } from "../../../src/formats/driver.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { type CheckCounts, qemuCheck } from "../../support/check-oracle.ts";
import { withMemoryScratch } from "../../support/crash-scratch.ts";
import { parseMap } from "../../support/disk-map.ts";
import { convertToRaw, imageMap } from "../../support/qemu.ts";

export const USUAL_POLICY: WritePolicy = {
  detectZeroes: "on",
  discard: "unmap",
  growable: false,
  copyOnRead: true,
};

export interface DiskOptions {
  readonly policy?: Partial<WritePolicy> | undefined;
  /** The format, stated; default: by the magic. */
  readonly format?: FormatName | undefined;
  /** Passphrases of encrypted images. */
  readonly secrets?: readonly Uint8Array[] | undefined;
  readonly backingSecrets?: readonly Uint8Array[];
  readonly attachFile?: AttachFile | undefined;
  /** Those of the first thread. */
  readonly counters?: Float64Array | undefined;
}

/** An open disk, and the bytes of it without buffers. */
export class WritableDisk {
  readonly chain: OpenChain;
  readonly disk: Disk;

  constructor(
    path: string,
    { policy, format, secrets, backingSecrets, attachFile, counters }: DiskOptions = {},
  ) {
    this.chain = openChain(path, {
      format,
      backingPolicy: "any",
      forceShare: false,
      secrets,
      backingSecrets,
      writing: { policy: { ...USUAL_POLICY, ...policy }, threads: 2 },
    });
    try {
      this.disk = attach(this.chain, 0, attachFile, counters);
    } catch (error) {
      closeChain(this.chain);
      throw error;
    }
  }

  /** The same disk as another thread has it. */
  asOtherThread(): Disk {
    return attach(this.chain, 1, undefined);
  }

  /** Ends writing, and closes the files also if that fails. */
  close(): void {
    try {
      this.disk.close();
    } finally {
      closeChain(this.chain);
    }
  }

  /** Closes the files as if the program had been killed. */
  abandon(): void {
    closeChain(this.chain);
  }

  write(offset: number, bytes: Uint8Array): void {
    // Not at the start of the buffer, as the data of a FUSE request is not.
    const source = NativeBuffer.allocate(bytes.length + 80);
    source.bytes.fill(0xdd);
    source.bytes.set(bytes, 80);
    this.disk.write(offset, bytes.length, source, 80);
  }

  /** Writes `length` bytes of one value. */
  fill(offset: number, length: number, value: number): void {
    this.write(offset, Buffer.alloc(length, value));
  }

  read(offset = 0, length = this.disk.currentSize() - offset): Buffer {
    return readDisk(this.disk, offset, length);
  }
}

/** Reads a part of a disk; nothing beside it may be touched. */
export function readDisk(disk: Disk, offset = 0, length = disk.currentSize() - offset): Buffer {
  const target = NativeBuffer.allocate(length + 32);
  target.bytes.fill(0xdd);
  disk.read(offset, length, target, 16);
  const bytes = Buffer.from(target.bytes);
  expect(bytes.subarray(0, 16).every((byte) => byte === 0xdd)).toBe(true);
  expect(bytes.subarray(16 + length).every((byte) => byte === 0xdd)).toBe(true);
  return bytes.subarray(16, 16 + length);
}

function attach(
  chain: OpenChain,
  slot: number,
  attachFile: AttachFile | undefined,
  counters?: Float64Array,
): Disk {
  const thread = { slot, requestMaintenance: undefined, counters };
  return attachDisk(chain, { clusterCache: new ClusterCache() }, thread, attachFile);
}

/** A directory with image files in it. */
export class DiskFiles {
  readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  put(name: string, bytes: Uint8Array): string {
    fs.writeFileSync(this.path(name), bytes);
    return this.path(name);
  }

  bytes(name: string): Buffer {
    return fs.readFileSync(this.path(name));
  }

  /** Bytes that the host stores of a file. */
  stored(name: string): number {
    return fs.statSync(this.path(name)).blocks * 512;
  }

  /** Opens the disk of an image; the caller closes it, or abandons it. */
  open(name: string, options: DiskOptions = {}): WritableDisk {
    return new WritableDisk(this.path(name), options);
  }

  /** Calls `body` with the disk of an image, and closes it. */
  use<T>(name: string, body: (disk: WritableDisk) => T, options: DiskOptions = {}): T {
    const disk = this.open(name, options);
    try {
      return body(disk);
    } finally {
      disk.close();
    }
  }

  /** What qemu-img check counts in an image. */
  async check(name: string): Promise<CheckCounts> {
    const { counts, stderr } = await qemuCheck(this.path(name), clusteredFormat(name));
    if (counts === undefined) expect.fail(`qemu-img check: ${stderr}`);
    expect(counts.corruptions + counts.checkErrors, stderr).toBe(0);
    return counts;
  }

  /** Fails unless qemu-img check finds nothing at all; gives its counts. */
  async expectClean(name: string): Promise<CheckCounts> {
    const { counts, stderr } = await qemuCheck(this.path(name), clusteredFormat(name));
    expect(counts, stderr).toMatchObject({ status: 0, leaks: 0, corruptions: 0, checkErrors: 0 });
    if (counts === undefined) expect.fail(stderr);
    return counts;
  }

  /**
   * What qemu-img map says of each cluster: D data, Z zeros with a place on the host, z zeros without,
   * `.` nothing, and d or o for data or zeros of a backing file.
   */
  async clusters(name: string, clusterSize: number): Promise<string> {
    const entries = parseMap(await imageMap(["-f", clusteredFormat(name), this.path(name)]));
    const letters = entries.map(({ length, depth, present, zero, data, offset }) => {
      const count = Math.ceil(length / clusterSize);
      if (depth > 0 && present) return (zero ? "o" : "d").repeat(count);
      if (!present) return ".".repeat(count);
      if (data) return "D".repeat(count);
      return (offset === undefined ? "z" : "Z").repeat(count);
    });
    return letters.join("");
  }

  /** The whole disk of an image, by qemu-img. */
  async converted(name: string): Promise<Buffer> {
    const format = name.endsWith(".raw") ? "raw" : clusteredFormat(name);
    const flat = this.path(`${name}.flat`);
    await convertToRaw(this.path(name), format, flat);
    const bytes = fs.readFileSync(flat);
    fs.rmSync(flat);
    return bytes;
  }
}

function clusteredFormat(name: string): "qcow2" | "qed" {
  return name.endsWith(".qed") ? "qed" : "qcow2";
}

/** Calls `body` with a new directory for image files, in memory. */
export async function withDiskFiles<T>(body: (files: DiskFiles) => Promise<T>): Promise<T> {
  return await withMemoryScratch("disk", (directory) => body(new DiskFiles(directory)));
}
