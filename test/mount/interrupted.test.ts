// Mount commands that are interrupted, and what they must not leave or keep.

import { spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { mkdir, readdir, readlink, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MARK, markedProcesses, newMark, runsNode } from "../support/daemon-processes.ts";
import { withProgram } from "../support/foreground.ts";
import { mountAt } from "../support/mount-table.ts";
import { mounted } from "../support/mounted.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { LONG } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport, itOnce, MOUNT_COMMAND } from "../support/transport.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

const SIGNALS = casesOfTransport("interrupted", ["SIGINT", "SIGTERM", "SIGKILL"] as const, 1);

const DAEMON_SIGNALS = casesOfTransport("daemon", ["SIGINT", "SIGTERM", "SIGHUP"] as const, 1);
/** For each of them. */
const ROUNDS = LONG ? 10 : 1;
/** From the first sight of a daemon until it serves. */
const LATEST_MS = 500;
const random = new Random("interrupted");

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
    const result = await attemptTsimgfs([...MOUNT_COMMAND, sample.path, mountPoint], { env });
    try {
      // libfuse does not ask fusermount3 where it is root: then nobody has sent a signal.
      if (result.status !== 0) expect(refusalOf(result)).toMatch(/vm\.qcow2: .*ended by SIGTERM$/);
      expect(result.status === 0).toBe(mountAt(mountPoint) !== undefined);
      await attemptTsimgfs(["umount", mountPoint]);
      await until("no process is left", () => markedProcesses(mark).length === 0);
      expect(mountAt(mountPoint)).toBeUndefined();
    } finally {
      await attemptTsimgfs(["umount", mountPoint]);
    }
  });

  it.each(DAEMON_SIGNALS)(
    "says so when its background process alone is ended by %s, at any moment",
    async (signal) => {
      for (let round = 0; round < ROUNDS; round++) {
        const mountPoint = join(directory, `daemon-${signal}-${round}`);
        await mkdir(mountPoint);
        const mark = newMark();
        const args = [MAIN, ...MOUNT_COMMAND, sample.path, mountPoint];
        await withProgram(
          process.execPath,
          args,
          async (command) => {
            let daemon: number | undefined;
            await until("a daemon is there", () => {
              daemon = markedProcesses(mark).find((pid) => pid !== command.pid && runsNode(pid));
              return daemon !== undefined;
            });
            await sleep(random.below(LATEST_MS));
            if (daemon !== undefined) process.kill(daemon, signal);
            if ((await command.end()) !== 0) {
              expect(command.output).toMatch(/^tsimgfs: .*vm\.qcow2: .*ended (by|with) SIG\w+\n$/);
            }
            await until("no process is left", () => markedProcesses(mark).length === 0);
            expect(mountAt(mountPoint)).toBeUndefined();
          },
          { [MARK]: mark },
        );
      }
    },
  );

  itOnce("in the foreground, by Ctrl-C while fusermount3 mounts, leaves nothing", async () => {
    const programs = join(directory, "foreground-programs");
    await mkdir(programs);
    // As a terminal does: to all processes of the group.
    const signal = 'kill -INT -"$(ps -o pgid= "$PPID" | tr -d " ")"';
    const script = `#!/bin/sh\n[ "$1" = -u ] || ${signal}\nexec /usr/bin/fusermount3 "$@"\n`;
    await writeFile(join(programs, "fusermount3"), script, { mode: 0o755 });
    const mountPoint = join(directory, "foreground");
    await mkdir(mountPoint);
    const mark = newMark();
    await withProgram(
      "setsid",
      [process.execPath, MAIN, ...MOUNT_COMMAND, "-f", sample.path, mountPoint],
      async (command) => {
        expect(await command.end()).toBe(130);
        expect(command.output).toBe("");
      },
      { [MARK]: mark, PATH: `${programs}:${process.env["PATH"]}` },
    );
    expect(markedProcesses(mark)).toEqual([]);
    expect(mountAt(mountPoint)).toBeUndefined();
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
