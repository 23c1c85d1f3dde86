/** Native memory: what a system call writes at an address is what JavaScript sees at the index. */

import fs from "node:fs";
import { describe, expect, it } from "vitest";
import { pread, write } from "../../../src/syscalls/libc.ts";
import { NativeBuffer, PAGE_SIZE } from "../../../src/syscalls/native-buffer.ts";

const SELF = import.meta.filename;

describe("NativeBuffer", () => {
  it.each([1, 511, 4096, 4097, 1024 * 1024])("aligns %i bytes to a page", (length) => {
    const buffer = NativeBuffer.allocate(length);
    expect(buffer.address % PAGE_SIZE).toBe(0);
    expect(buffer.length).toBe(length);
    expect(buffer.bytes).toHaveLength(length);
    expect(buffer.view.byteLength).toBe(length);
  });

  it.each([1, 16, 4095, 4096, 5000])("aligns the byte after a lead of %i", (lead) => {
    const buffer = NativeBuffer.allocate(lead + 100, lead);
    expect((buffer.address + lead) % PAGE_SIZE).toBe(0);
    expect(buffer.length).toBe(lead + 100);
  });

  it("starts as zeros", () => {
    expect(NativeBuffer.allocate(10_000).bytes.every((byte) => byte === 0)).toBe(true);
  });

  it("has an address 0 when it is empty", () => {
    expect(new NativeBuffer(new ArrayBuffer(0)).address).toBe(0);
  });

  it("shows what a system call writes at an address", () => {
    const fd = fs.openSync(SELF, "r");
    try {
      const buffer = NativeBuffer.allocate(64);
      expect(pread(fd, buffer.address + 10, 20, 4)).toBe(20);
      const expected = fs.readFileSync(SELF).subarray(4, 24);
      expect(Buffer.from(buffer.bytes.subarray(10, 30))).toEqual(expected);
      expect(buffer.bytes[9]).toBe(0);
      expect(buffer.bytes[30]).toBe(0);
    } finally {
      fs.closeSync(fd);
    }
  });

  it("covers a part of memory that exists, shared or not", () => {
    for (const memory of [new ArrayBuffer(100), new SharedArrayBuffer(100)]) {
      const whole = new NativeBuffer(memory);
      const part = new NativeBuffer(memory, 40, 20);
      expect(part.address).toBe(whole.address + 40);
      part.view.setUint8(0, 7);
      expect(whole.bytes[40]).toBe(7);
      expect(new NativeBuffer(memory, 60).length).toBe(40);
    }
  });

  it("keeps its address while garbage is made and collected around it", () => {
    const buffers = [8, 64, 100, 5000].map((length) => NativeBuffer.allocate(length));
    for (const [index, buffer] of buffers.entries()) buffer.bytes.fill(index + 1);
    let garbage: unknown[] = [];
    for (let round = 0; round < 200; round++) {
      garbage = Array.from({ length: 200 }, (_, index) => new Uint8Array(index * 8));
    }
    expect(garbage).toHaveLength(200);
    for (const [index, buffer] of buffers.entries()) {
      const again = new NativeBuffer(buffer.bytes.buffer, buffer.bytes.byteOffset);
      expect(again.address).toBe(buffer.address);
      expect(buffer.bytes.every((byte) => byte === index + 1)).toBe(true);
    }
  });

  it("gives system calls the bytes that JavaScript wrote", () => {
    const buffer = NativeBuffer.allocate(32);
    buffer.bytes.set(Buffer.from("hello, kernel"), 3);
    const directory = fs.mkdtempSync("/tmp/native-buffer-");
    const path = `${directory}/out`;
    const fd = fs.openSync(path, "w");
    try {
      expect(write(fd, buffer.address + 3, 13)).toBe(13);
      expect(fs.readFileSync(path, "utf8")).toBe("hello, kernel");
    } finally {
      fs.closeSync(fd);
      fs.rmSync(directory, { recursive: true });
    }
  });
});
