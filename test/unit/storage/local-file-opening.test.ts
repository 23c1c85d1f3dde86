/** Opening and making local files to write to them, what is refused, and what a failing call says. */

import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { withLoop } from "../../support/loop.ts";
import { IS_ROOT } from "../../support/ordinary-user.ts";
import { Random } from "../../support/random.ts";
import { attempt } from "../../support/run.ts";
import { withScratch } from "../../support/scratch.ts";
import { expectBytes } from "../expect-bytes.ts";

const hasLoop = IS_ROOT && (await attempt("losetup", ["--find"])).status === 0;

describe("LocalFile.open for writing", () => {
  it("gives a descriptor that other threads can write to", async () => {
    await withScratch("open", async (directory) => {
      const path = join(directory, "file");
      fs.writeFileSync(path, "0123456789");
      const file = LocalFile.open(path, "read-write");
      try {
        expect(file.resizable).toBe(true);
        const other = new LocalFile(structuredClone(file.share()));
        expect(other.resizable).toBe(true);
        const source = NativeBuffer.allocate(3);
        source.bytes.set(Buffer.from("abc"));
        other.writeAt(source, 0, 3, 4);
        other.setLength(8);
        expect(file.currentLength()).toBe(8);
        expect(fs.readFileSync(path, "utf8")).toBe("0123abc7");
      } finally {
        file.close();
      }
    });
  });

  it("does not make a file, and does not empty one", async () => {
    await withScratch("open", async (directory) => {
      const path = join(directory, "file");
      expect(() => LocalFile.open(path, "read-write")).toThrow(
        expect.objectContaining({ code: "ENOENT", message: `${path}: no such file` }),
      );
      expect(fs.existsSync(path)).toBe(false);
      fs.writeFileSync(path, "0123456789");
      LocalFile.open(path, "read-write").close();
      expect(fs.readFileSync(path, "utf8")).toBe("0123456789");
    });
  });

  it.each(["read-write", "read-only"] as const)("refuses directories (%s)", (mode) => {
    expect(() => LocalFile.open("/tmp", mode)).toThrow(expect.objectContaining({ code: "EISDIR" }));
  });

  it("says of a name that is not UTF-8 that there can be no such file", async () => {
    await withScratch("opening", async (directory) => {
      const name = Buffer.from([0x6e, 0xff]);
      fs.writeFileSync(Buffer.concat([Buffer.from(`${directory}/`), name]), "");
      const open = (): unknown => LocalFile.open(join(directory, name.toString()), "read-only");
      expect(open).toThrow(/no such file: names that are not valid UTF-8 cannot be used$/);
      expect(() => LocalFile.open(join(directory, "none"), "read-only")).toThrow(/no such file$/);
    });
  });

  it("refuses devices that are no disks, and leaves no descriptor open", () => {
    const open = (): number => fs.readdirSync("/proc/self/fd").length;
    const before = open();
    for (let round = 0; round < 20; round++) {
      expect(() => LocalFile.open("/dev/zero", "read-write")).toThrow(/neither a regular file nor/);
    }
    expect(open()).toBeLessThan(before + 10);
  });
});

describe("LocalFile.create", () => {
  it("makes a new, empty file that is open for writing", async () => {
    await withScratch("create", async (directory) => {
      const path = join(directory, "file");
      const file = LocalFile.create(path);
      try {
        expect(file.length).toBe(0);
        expect(file.resizable).toBe(true);
        const source = NativeBuffer.allocate(2);
        source.bytes.set(Buffer.from("ok"));
        file.writeAt(source, 0, 2, 0);
      } finally {
        file.close();
      }
      expect(fs.readFileSync(path, "utf8")).toBe("ok");
      expect(fs.statSync(path).mode & 0o777).toBe(0o644 & ~process.umask());
    });
  });

  it("refuses a place where no file can be", async () => {
    await withScratch("create", async (directory) => {
      expect(() => LocalFile.create(directory)).toThrow(
        expect.objectContaining({ code: "EISDIR" }),
      );
      expect(() => LocalFile.create(join(directory, "none", "file"))).toThrow(
        expect.objectContaining({ code: "ENOENT" }),
      );
      expect(() => LocalFile.create("/dev/zero")).toThrow(/neither a regular file nor/);
    });
  });
});

describe("a LocalFile whose system call fails", () => {
  const source = NativeBuffer.allocate(100);

  /** A file with another descriptor than its own. */
  function fileOn(device: string, flags: number, body: (file: LocalFile) => void): void {
    const fd = fs.openSync(device, flags);
    try {
      body(new LocalFile({ fd, path: "disk.raw", length: 1000, resizable: true }));
    } finally {
      fs.closeSync(fd);
    }
  }

  it("says which one, where and why: a full disk", () => {
    fileOn("/dev/full", fs.constants.O_RDWR, (file) => {
      expect(() => file.writeAt(source, 0, 100, 0x1f00)).toThrow(
        expect.objectContaining({
          name: "StorageError",
          code: "ENOSPC",
          message:
            "disk.raw: write at offset 0x1f00 failed: ENOSPC, no space is left on its file system",
        }),
      );
    });
  });

  it("says which one, where and why: a descriptor that is only read", async () => {
    await withScratch("failing", async (directory) => {
      const path = join(directory, "file");
      fs.writeFileSync(path, Buffer.alloc(1000, 1));
      fileOn(path, fs.constants.O_RDONLY, (file) => {
        expect(() => file.writeAt(source, 0, 1, 0)).toThrow(/^disk\.raw: write at .* EBADF$/);
        expect(() => file.zeroAt(0, 1, "release")).toThrow(/^disk\.raw: fallocate at .* EBADF$/);
        expect(() => file.preallocate(0, 1)).toThrow(/^disk\.raw: fallocate at .* EBADF$/);
        expect(() => file.setLength(0)).toThrow(/^disk\.raw: truncate at .* EINVAL$/);
      });
      expectBytes(fs.readFileSync(path), Buffer.alloc(1000, 1));
    });
  });

  it("says which one, where and why: a descriptor that is closed", () => {
    const file = new LocalFile({ fd: 1_000_000, path: "disk.raw", length: 0, resizable: true });
    expect(() => file.sync()).toThrow(/^disk\.raw: fdatasync at .* EBADF$/);
    expect(() => file.currentLength()).toThrow(/^disk\.raw: lseek at .* EBADF$/);
  });

  it("does not grow beyond what the file system can say", async () => {
    await withScratch("failing", async (directory) => {
      const file = LocalFile.create(join(directory, "file"));
      try {
        expect(() => file.setLength(Number.MAX_SAFE_INTEGER)).toThrow(
          expect.objectContaining({ code: "EFBIG" }),
        );
        expect(file.currentLength()).toBe(0);
      } finally {
        file.close();
      }
    });
  });
});

describe.skipIf(!hasLoop)("a LocalFile of a block device (needs root and loop devices)", () => {
  const LENGTH = 64 * 1024;
  const content = new Random("block device").bytes(LENGTH);

  async function withDevice(body: (file: LocalFile) => void): Promise<Buffer> {
    return await withScratch("block-device", async (directory) => {
      const path = join(directory, "backing");
      fs.writeFileSync(path, content);
      await withLoop(path, [], async (device) => {
        const file = LocalFile.open(device, "read-write");
        try {
          body(file);
          file.sync();
        } finally {
          file.close();
        }
      });
      return fs.readFileSync(path);
    });
  }

  it("has its length for good", async () => {
    const result = await withDevice((file) => {
      expect(file.resizable).toBe(false);
      expect(file.length).toBe(LENGTH);
      file.preallocate(0, LENGTH);
      expect(file.currentLength()).toBe(LENGTH);
      expect(() => file.setLength(0)).toThrow(expect.objectContaining({ code: "EINVAL" }));
      expect(() => file.writeAt(NativeBuffer.allocate(2), 0, 2, LENGTH - 1)).toThrow(
        expect.objectContaining({ code: "ENOSPC" }),
      );
    });
    expectBytes(result.subarray(0, LENGTH - 1), content.subarray(0, LENGTH - 1));
  });

  it.each([
    { offset: 0, length: LENGTH },
    { offset: 1, length: 1 },
    { offset: 511, length: 2 },
    { offset: 4096, length: 8192 },
    { offset: 4095, length: 8194 },
    { offset: 5000, length: 100 },
    { offset: 4000, length: 1000 },
    { offset: LENGTH - 1, length: 1000 },
    { offset: LENGTH, length: 1000 },
  ])("zeroes $length bytes at $offset, of any alignment", async ({ offset, length }) => {
    for (const space of ["release", "keep"] as const) {
      const result = await withDevice((file) => file.zeroAt(offset, length, space));
      const expected = Buffer.from(content);
      expected.fill(0, offset, Math.min(LENGTH, offset + length));
      expectBytes(result, expected, space);
    }
  });

  it("is data as far as anybody knows", async () => {
    await withDevice((file) => {
      const run = { isData: false, length: 0 };
      file.hostRun(0, run);
      expect(run.isData).toBe(true);
      expect(run.length).toBeGreaterThanOrEqual(LENGTH);
      expect(file.isHole(0, 1)).toBe(false);
      expect(file.allocatedSize()).toBe(LENGTH);
    });
  });
});
