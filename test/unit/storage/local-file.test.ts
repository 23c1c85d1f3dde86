/** Local files: reading past the end, sparse files, and what is not opened. */

import { execFileSync } from "node:child_process";
import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { LocalFile } from "../../../src/storage/local-file.ts";
import type { HostRun } from "../../../src/storage/storage.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { Random } from "../../support/random.ts";
import { withScratch } from "../../support/scratch.ts";

const KIB = 1024;

/** Calls `body` with a file that holds `bytes`. */
async function withFile(bytes: Uint8Array, body: (file: LocalFile) => void): Promise<void> {
  await withScratch("local-file", async (directory) => {
    const path = join(directory, "file");
    fs.writeFileSync(path, bytes);
    const file = LocalFile.open(path, "read-only");
    try {
      body(file);
    } finally {
      file.close();
    }
  });
}

/** All runs of a file, as [isData, start]. */
function runsOf(file: LocalFile): [isData: boolean, start: number][] {
  const runs: [boolean, number][] = [];
  const run: HostRun = { isData: false, length: 0 };
  for (let offset = 0; offset < file.length; offset += run.length) {
    file.hostRun(offset, run);
    expect(run.length).toBeGreaterThan(0);
    runs.push([run.isData, offset]);
  }
  return runs;
}

describe("LocalFile.readAt", () => {
  const content = new Random("local file").bytes(10_000);

  it.each([
    { offset: 0, length: 10_000 },
    { offset: 1, length: 1 },
    { offset: 9_999, length: 1 },
    { offset: 4_095, length: 4_098 },
    { offset: 0, length: 0 },
  ])("reads $length bytes at $offset", async ({ offset, length }) => {
    await withFile(content, (file) => {
      const target = NativeBuffer.allocate(length + 20);
      target.bytes.fill(0x55);
      file.readAt(target, 10, length, offset);
      const expected = Buffer.alloc(length + 20, 0x55);
      content.copy(expected, 10, offset, offset + length);
      expect(Buffer.from(target.bytes)).toEqual(expected);
    });
  });

  it.each([
    { offset: 9_990, inFile: 10 },
    { offset: 9_999, inFile: 1 },
    { offset: 10_000, inFile: 0 },
    { offset: 10_001, inFile: 0 },
    { offset: 2 ** 50, inFile: 0 },
  ])("pads a read at $offset with zeros past the end of the file", async ({ offset, inFile }) => {
    await withFile(content, (file) => {
      const target = NativeBuffer.allocate(100);
      target.bytes.fill(0x55);
      file.readAt(target, 5, 50, offset);
      const expected = Buffer.alloc(100, 0x55);
      expected.fill(0, 5, 55);
      if (inFile > 0) content.copy(expected, 5, offset);
      expect(Buffer.from(target.bytes)).toEqual(expected);
    });
  });

  it("reads zeros from an empty file", async () => {
    await withFile(new Uint8Array(0), (file) => {
      expect(file.length).toBe(0);
      const target = NativeBuffer.allocate(16);
      target.bytes.fill(1);
      file.readAt(target, 0, 16, 0);
      expect([...target.bytes]).toEqual(Array(16).fill(0));
    });
  });

  it("says which call failed, where, and why", async () => {
    await withFile(content, (file) => {
      const closed = new LocalFile({ ...file.share(), fd: 1_000_000 });
      expect(() => closed.readAt(NativeBuffer.allocate(8), 0, 8, 0x1f00)).toThrow(
        expect.objectContaining({
          name: "StorageError",
          code: "EBADF",
          message: `${file.path}: read at offset 0x1f00 failed: EBADF`,
        }),
      );
    });
  });
});

describe("LocalFile.hostRun", () => {
  it("tells data from holes", async () => {
    await withScratch("sparse", async (directory) => {
      const path = join(directory, "sparse");
      const fd = fs.openSync(path, "w");
      fs.writeSync(fd, Buffer.alloc(64 * KIB, 1), 0, 64 * KIB, 0);
      fs.writeSync(fd, Buffer.alloc(64 * KIB, 2), 0, 64 * KIB, 1024 * KIB);
      fs.ftruncateSync(fd, 2048 * KIB);
      fs.closeSync(fd);
      const file = LocalFile.open(path, "read-only");
      try {
        expect(runsOf(file)).toEqual([
          [true, 0],
          [false, 64 * KIB],
          [true, 1024 * KIB],
          [false, 1088 * KIB],
        ]);
        const run: HostRun = { isData: true, length: 0 };
        file.hostRun(100 * KIB + 1, run);
        expect(run).toEqual({ isData: false, length: 924 * KIB - 1 });
        file.hostRun(63 * KIB, run);
        expect(run).toEqual({ isData: true, length: KIB });
        file.hostRun(2048 * KIB - 1, run);
        expect(run.isData).toBe(false);
        expect(file.allocatedSize()).toBe(fs.statSync(path).blocks * 512);
        expect(file.allocatedSize()).toBeLessThan(256 * KIB);
      } finally {
        file.close();
      }
    });
  });

  it("takes a file without holes for one run of data", async () => {
    await withFile(Buffer.alloc(100_001, 1), (file) => {
      const run: HostRun = { isData: false, length: 0 };
      file.hostRun(1, run);
      expect(run).toEqual({ isData: true, length: 100_000 });
    });
  });

  it("takes a file that is all hole for one hole", async () => {
    await withScratch("hole", async (directory) => {
      const path = join(directory, "hole");
      fs.writeFileSync(path, "");
      fs.truncateSync(path, 1024 * KIB);
      const file = LocalFile.open(path, "read-only");
      try {
        const run: HostRun = { isData: true, length: 0 };
        file.hostRun(0, run);
        expect(run.isData).toBe(false);
        expect(run.length).toBeGreaterThanOrEqual(1024 * KIB);
      } finally {
        file.close();
      }
    });
  });
});

describe("LocalFile.open", () => {
  it("gives the length of the file and a descriptor that another thread can use", async () => {
    await withFile(Buffer.from("0123456789"), (file) => {
      expect(file.length).toBe(10);
      const other = new LocalFile(structuredClone(file.share()));
      const target = NativeBuffer.allocate(3);
      other.readAt(target, 0, 3, 4);
      expect(Buffer.from(target.bytes).toString()).toBe("456");
    });
  });

  it("refuses a file that does not exist", () => {
    expect(() => LocalFile.open("/nonexistent/disk.raw", "read-only")).toThrow(
      expect.objectContaining({
        code: "ENOENT",
        message: "/nonexistent/disk.raw: no such file",
      }),
    );
  });

  it("refuses a path through a file", () => {
    expect(() => LocalFile.open("/etc/passwd/disk.raw", "read-only")).toThrow(
      expect.objectContaining({
        code: "ENOTDIR",
        message: "/etc/passwd/disk.raw: a part of the path is not a directory",
      }),
    );
  });

  it("refuses a directory", () => {
    expect(() => LocalFile.open("/tmp", "read-only")).toThrow(
      expect.objectContaining({ code: "EISDIR", message: "/tmp: is a directory" }),
    );
  });

  it("refuses a symbolic link to itself", async () => {
    await withScratch("loop", async (directory) => {
      const path = join(directory, "loop");
      fs.symlinkSync("loop", path);
      expect(() => LocalFile.open(path, "read-only")).toThrow(
        expect.objectContaining({ code: "ELOOP", message: `${path}: too many symbolic links` }),
      );
    });
  });

  it("refuses a FIFO at once, without waiting for a writer", async () => {
    await withScratch("fifo", async (directory) => {
      const path = join(directory, "fifo");
      execFileSync("mkfifo", [path]);
      expect(() => LocalFile.open(path, "read-only")).toThrow(
        expect.objectContaining({
          code: "EINVAL",
          message: `${path}: is neither a regular file nor a block device`,
        }),
      );
    });
  });

  it("refuses a character device", () => {
    expect(() => LocalFile.open("/dev/zero", "read-only")).toThrow(/neither a regular file nor/);
  });

  it("leaves no descriptor open after a refusal", () => {
    const open = (): number => fs.readdirSync("/proc/self/fd").length;
    const before = open();
    for (let round = 0; round < 20; round++) {
      expect(() => LocalFile.open("/dev/zero", "read-only")).toThrow();
    }
    expect(open()).toBeLessThan(before + 10);
  });
});
