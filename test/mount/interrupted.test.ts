// Mount commands that are interrupted, and what they must not leave or keep.

import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { mkdir, readdir, readlink, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MARK, markedProcesses, newMark } from "../support/daemon-processes.ts";
import { mountAt } from "../support/mount-table.ts";
import { mounted } from "../support/mounted.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport, MOUNT_COMMAND } from "../support/transport.ts";
import { attemptTsimgfs, tsimgfs } from "../support/tsimgfs.ts";

const SIGNALS = casesOfTransport("interrupted", ["SIGINT", "SIGTERM", "SIGKILL"] as const, 1);

/** Long after any daemon has noticed that nobody waits for it. */
const SETTLED_MS = 400;

describe("a mount command that is interrupted", () => {
  let directory = "";
  let sample: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("interrupted");
    sample = await makeSample(directory, "vm.qcow2");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** Whether the device has its contents. False where the mount ends meanwhile. */
  async function isWhole(mountPoint: string): Promise<boolean> {
    const { status } = await attempt("cmp", [join(mountPoint, "vm.raw"), sample.expected]);
    return status === 0;
  }

  it.each(SIGNALS)(
    "by %s at any moment leaves nothing, or a mount that is whole",
    async (signal) => {
      for (let delayMs = 30; delayMs <= 330; delayMs += 30) {
        const mountPoint = join(directory, `${signal}-${delayMs}`);
        await mkdir(mountPoint);
        const mark = newMark();
        const child = spawn(process.execPath, [MAIN, ...MOUNT_COMMAND, sample.path, mountPoint], {
          stdio: "ignore",
          env: { ...process.env, [MARK]: mark },
        });
        const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()));
        await sleep(delayMs);
        child.kill(signal);
        await ended;
        await sleep(SETTLED_MS);
        // A mount that is there now is whole if the daemon was ready, and had said so, before the signal
        // came; else the daemon is about to end it.
        if (mountAt(mountPoint) !== undefined && (await isWhole(mountPoint))) {
          await attemptTsimgfs(["umount", mountPoint]);
        }
        await until("no process is left", () => markedProcesses(mark).length === 0);
        expect(mountAt(mountPoint), `after ${delayMs} ms`).toBeUndefined();
      }
    },
  );

  it("ends when the daemon hears of it while it mounts", async () => {
    const programs = join(directory, "programs");
    await mkdir(programs);
    // Who runs it is the daemon, just before there is a mount.
    const script = '#!/bin/sh\n[ "$1" = -u ] || kill -TERM $PPID\nexec /usr/bin/fusermount3 "$@"\n';
    await writeFile(join(programs, "fusermount3"), script, { mode: 0o755 });
    const mountPoint = join(directory, "early");
    await mkdir(mountPoint);
    const mark = newMark();
    const env = { [MARK]: mark, PATH: `${programs}:${process.env["PATH"]}` };
    await attemptTsimgfs([...MOUNT_COMMAND, sample.path, mountPoint], { env });
    try {
      await until("no process is left", () => markedProcesses(mark).length === 0);
      expect(mountAt(mountPoint)).toBeUndefined();
    } finally {
      await attemptTsimgfs(["umount", mountPoint]);
    }
  });

  it("does not keep the files that the shell had open", async () => {
    const lock = join(directory, "lock");
    const fd = openSync(lock, "w");
    try {
      const mountPoint = join(directory, "inherit");
      await mkdir(mountPoint);
      const script = `exec 20>"$1"; shift; exec "$@"`;
      await run("bash", [
        "-c",
        script,
        "bash",
        lock,
        process.execPath,
        MAIN,
        ...MOUNT_COMMAND,
        sample.path,
        mountPoint,
      ]);
      const { stdout } = await tsimgfs(["list", "--output", "json"]);
      const mounts: { mountpoint: string; pid: number }[] = JSON.parse(stdout);
      const pid = mounts.find((mount) => mount.mountpoint === mountPoint)?.pid;
      const names = await readdir(`/proc/${pid}/fd`);
      const links = await Promise.all(names.map((name) => readlink(`/proc/${pid}/fd/${name}`)));
      await tsimgfs(["umount", mountPoint]);
      expect(links).not.toContain(lock);
    } finally {
      closeSync(fd);
    }
  });

  it("says so where the mount is still visible at another place", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const other = join(directory, "bound");
      await mkdir(other);
      await run("mount", ["--bind", mount.mountPoint, other]);
      try {
        const result = await attemptTsimgfs(["umount", mount.mountPoint]);
        expect(result.status).toBe(1);
        expect(result.stderr).toMatch(/still mounted at .*bound/);
      } finally {
        await attempt("umount", [other]);
      }
      await until("the daemon is gone", () => mount.daemonPids().length === 0);
    });
  });
});
