/** Image locks with QEMU, and with another process of ours, as the other holder. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { lockForReading } from "../../../src/storage/image-lock.ts";
import { LocalFile } from "../../../src/storage/local-file.ts";
import { REPOSITORY } from "../../support/repository.ts";
import { attempt, run, until } from "../../support/run.ts";
import { withScratch } from "../../support/scratch.ts";
import { bundleWorker } from "../bundled-worker.ts";

const children: ChildProcess[] = [];

afterEach(async () => {
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }
});

/** Starts a process that holds the image; resolves when it has printed `sign`. */
async function startHolder(
  command: string,
  args: readonly string[],
  sign: string,
  env: Readonly<Record<string, string>> = {},
): Promise<ChildProcess> {
  const child = spawn(command, [...args], {
    stdio: ["pipe", "pipe", "pipe"],
    cwd: REPOSITORY,
    env: { ...process.env, ...env },
  });
  children.push(child);
  let said = "";
  child.stdout.on("data", (chunk: Buffer) => {
    said += chunk.toString();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    said += chunk.toString();
  });
  await until(`${command} says ${sign}`, () => {
    if (child.exitCode !== null) throw new Error(`${command} ended: ${said}`);
    return said.includes(sign);
  });
  return child;
}

/** qemu-io keeps the image open until its input ends. */
function startQemuIo(path: string, args: readonly string[]): Promise<ChildProcess> {
  return startHolder("qemu-io", [...args, "-f", "qcow2", path], "qemu-io>");
}

async function withImage(body: (path: string) => Promise<void>): Promise<void> {
  await withScratch("image-lock", async (directory) => {
    const path = join(directory, "disk.qcow2");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", path, "1M"]);
    await body(path);
  });
}

/** What locking the image fails with, or undefined. */
function lockFailure(path: string): unknown {
  const file = LocalFile.open(path, "read-only");
  try {
    lockForReading(file);
    return undefined;
  } catch (error) {
    return error;
  } finally {
    file.close();
  }
}

const WRITE = ["-f", "qcow2", "-c", "write -P 1 0 4k"];

describe("locks against QEMU", () => {
  it("refuse an image that qemu-io has open for writing, and name it", async () => {
    await withImage(async (path) => {
      const child = await startQemuIo(path, []);
      expect(lockFailure(path)).toMatchObject({
        name: "StorageError",
        code: "EAGAIN",
        message: expect.stringContaining(`${path}: is in use by qemu-io (pid ${child.pid})`),
      });
    });
  });

  it("take the image once qemu-io has closed it", async () => {
    await withImage(async (path) => {
      const child = await startQemuIo(path, []);
      const ended = once(child, "exit");
      child.stdin?.end();
      await ended;
      expect(lockFailure(path)).toBeUndefined();
    });
  });

  it("share an image with a QEMU that reads it", async () => {
    await withImage(async (path) => {
      await startQemuIo(path, ["-r"]);
      expect(lockFailure(path)).toBeUndefined();
    });
  });

  it("share an image with a QEMU that takes no locks", async () => {
    await withImage(async (path) => {
      await startQemuIo(path, ["-r", "-U"]);
      expect(lockFailure(path)).toBeUndefined();
    });
  });

  it("keep qemu-io from writing, but not from reading, until the file is closed", async () => {
    await withImage(async (path) => {
      const file = LocalFile.open(path, "read-only");
      lockForReading(file);
      try {
        const refused = await attempt("qemu-io", [...WRITE, path]);
        expect(refused.stderr + refused.stdout).toMatch(/lock/);
        await run("qemu-img", ["info", path]);
        await run("qemu-io", ["-r", "-f", "qcow2", "-c", "read -P 0 0 4k", path]);
      } finally {
        file.close();
      }
      await run("qemu-io", [...WRITE, path]);
    });
  });

  it("hold bytes 100, 201 and 203 for reading, as the kernel lists them", async () => {
    await withImage(async (path) => {
      const file = LocalFile.open(path, "read-only");
      lockForReading(file);
      try {
        const fdinfo = fs.readFileSync(`/proc/self/fdinfo/${file.fd}`, "utf8");
        const locks = [...fdinfo.matchAll(/^lock:.*OFDLCK +ADVISORY +READ .* (\d+) (\d+)$/gm)];
        const bytes = locks.flatMap(([, first, last]) => {
          const count = Number(last) - Number(first) + 1;
          return Array.from({ length: count }, (_, index) => Number(first) + index);
        });
        expect(bytes.sort((a, b) => a - b)).toEqual([100, 201, 203]);
      } finally {
        file.close();
      }
    });
  });
});

describe("locks between processes of ours", () => {
  it("are shared by readers, and keep qemu-io out while any of them lives", async () => {
    await withImage(async (path) => {
      const script = await bundleWorker(new URL("./image-lock-child.ts", import.meta.url));
      const child = await startHolder(process.execPath, ["-e", script], "locked", { IMAGE: path });
      expect(lockFailure(path)).toBeUndefined();
      const refused = await attempt("qemu-io", [...WRITE, path]);
      expect(refused.stderr + refused.stdout).toMatch(/lock/);

      const ended = once(child, "exit");
      child.kill("SIGKILL");
      await ended;
      await run("qemu-io", [...WRITE, path]);
    });
  });

  it("are not lost when another descriptor of the same file is closed", async () => {
    await withImage(async (path) => {
      const file = LocalFile.open(path, "read-only");
      lockForReading(file);
      try {
        // POSIX locks of the process would end here.
        fs.closeSync(fs.openSync(path, "r"));
        const refused = await attempt("qemu-io", [...WRITE, path]);
        expect(refused.stderr + refused.stdout).toMatch(/lock/);
      } finally {
        file.close();
      }
    });
  });
});
