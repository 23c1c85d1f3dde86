/** The locks of a writer: against other open files of the same image, and against QEMU. */

import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { lockForReading, lockForWriting } from "../../../src/storage/image-lock.ts";
import { LocalFile, type OpenMode } from "../../../src/storage/local-file.ts";
import { createImage } from "../../support/qemu.ts";
import { attempt, run } from "../../support/run.ts";
import { withScratch } from "../../support/scratch.ts";

type Lock = (file: LocalFile) => void;

const LOCKS: Readonly<Record<"reader" | "writer", { mode: OpenMode; lock: Lock }>> = {
  reader: { mode: "read-only", lock: lockForReading },
  writer: { mode: "read-write", lock: lockForWriting },
};

async function withImage(body: (path: string) => Promise<void> | void): Promise<void> {
  await withScratch("write-lock", async (directory) => {
    const path = join(directory, "disk.qcow2");
    await createImage(path, "qcow2", { size: 1024 * 1024 });
    await body(path);
  });
}

function openAs(path: string, who: "reader" | "writer"): LocalFile {
  return LocalFile.open(path, LOCKS[who].mode);
}

/** Calls `body` while an open file of its own holds the image. */
async function whileHeld(
  path: string,
  who: "reader" | "writer",
  body: () => Promise<void> | void,
): Promise<void> {
  const file = openAs(path, who);
  try {
    LOCKS[who].lock(file);
    await body();
  } finally {
    file.close();
  }
}

/** The bytes that an open file has locked for reading, as the kernel lists them. */
function lockedBytes({ fd }: LocalFile): number[] {
  const fdinfo = fs.readFileSync(`/proc/self/fdinfo/${fd}`, "utf8");
  const locks = [...fdinfo.matchAll(/^lock:.*OFDLCK +ADVISORY +READ .* (\d+) (\d+)$/gm)];
  return locks
    .flatMap(([, first, last]) => {
      const count = Number(last) - Number(first) + 1;
      return Array.from({ length: count }, (_, index) => Number(first) + index);
    })
    .sort((a, b) => a - b);
}

/** What locking an image fails with, or undefined. */
function lockFailure(path: string, who: "reader" | "writer"): unknown {
  const file = openAs(path, who);
  try {
    LOCKS[who].lock(file);
    return undefined;
  } catch (error) {
    return error;
  } finally {
    file.close();
  }
}

describe("lockForWriting", () => {
  it("holds what a QEMU holds that writes: bytes 100, 101, 103, 201 and 203", async () => {
    await withImage((path) => {
      const file = openAs(path, "writer");
      try {
        lockForWriting(file);
        expect(lockedBytes(file)).toEqual([100, 101, 103, 201, 203]);
      } finally {
        file.close();
      }
    });
  });

  it.each([
    { first: "writer", second: "writer", advice: "and cannot be written to meanwhile" },
    { first: "reader", second: "writer", advice: "and cannot be written to meanwhile" },
    { first: "writer", second: "reader", advice: "which may write to it" },
  ] as const)("keeps a $second out while there is a $first", async ({ first, second, advice }) => {
    await withImage(async (path) => {
      await whileHeld(path, first, () => {
        expect(lockFailure(path, second)).toMatchObject({
          name: "StorageError",
          code: "EAGAIN",
          path,
        });
        expect(String(lockFailure(path, second))).toMatch(
          new RegExp(`is in use by .* \\(pid ${process.pid}\\), ${advice}; stop that first`),
        );
      });
      expect(lockFailure(path, second)).toBeUndefined();
    });
  });

  it("leaves nothing locked when it was refused and its file is closed", async () => {
    await withImage(async (path) => {
      await whileHeld(path, "reader", () => {
        expect(lockFailure(path, "writer")).toBeDefined();
        // A reader looks at what a writer would hold.
        expect(lockFailure(path, "reader")).toBeUndefined();
      });
    });
  });

  it("is lost with the last descriptor of its open file, not with another one", async () => {
    await withImage(async (path) => {
      await whileHeld(path, "writer", () => {
        fs.closeSync(fs.openSync(path, "r+"));
        openAs(path, "reader").close();
        expect(lockFailure(path, "writer")).toBeDefined();
      });
      expect(lockFailure(path, "writer")).toBeUndefined();
    });
  });

  it("keeps QEMU from writing and from reading, except without locks", async () => {
    await withImage(async (path) => {
      await whileHeld(path, "writer", async () => {
        const io = (...args: string[]) =>
          attempt("qemu-io", ["-f", "qcow2", ...args, "-c", "read -P 0 0 4k", path]);
        for (const args of [[], ["-r"]]) {
          const { stdout, stderr } = await io(...args);
          expect(stdout + stderr).toMatch(/Failed to get .*lock/);
        }
        expect((await io("-r", "-U")).stdout).toMatch(/read 4096\/4096/);
      });
      await run("qemu-io", ["-f", "qcow2", "-c", "write -P 1 0 4k", path]);
    });
  });
});
