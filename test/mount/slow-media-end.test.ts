// The end of mounts whose images lie on a medium that does not answer: it comes, and leaves what a kill leaves at most.
// These wait for the daemon's patience, half a minute, and so all at once.

import { mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { MARK, markedProcesses, newMark, runsNode } from "../support/daemon-processes.ts";
import { withProgram } from "../support/foreground.ts";
import { asRecord } from "../support/json.ts";
import { mountAt } from "../support/mount-table.ts";
import type { Mount } from "../support/mounted.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run, until } from "../support/run.ts";
import type { SlowDirectory } from "../support/slow-files.ts";
import {
  holdStuck,
  IMAGE,
  PATTERN,
  stuckReaderArgs,
  WRITTEN,
  withSlowImage,
  withSlowMount,
  writeDurably,
  writerArgs,
} from "../support/slow-mount.ts";
import { casesOfTransport, describeNeeds, MOUNT_COMMAND } from "../support/transport.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;
/** The daemon waits for half a minute. */
const ENDING_MS = 120_000;

async function untilHeld(slow: SlowDirectory, count = 1): Promise<void> {
  await until("calls have no answer", async () => (await slow.report()).held >= count);
}

async function expectGone(mount: Mount): Promise<void> {
  await until("the daemon is gone", () => mount.daemonPids().length === 0, ENDING_MS);
  expect(mount.isMounted()).toBe(false);
}

describeNeeds("threads")("a medium that never answers", () => {
  it.concurrent("does not keep a daemon that streams from it, and answers otherwise", async () => {
    const args = ["--no-copy-on-read"];
    await withSlowMount("overlay", { args, leftover: "leaks" }, async (slow, mount, image) => {
      const device = mount.device(image);
      await holdStuck(slow, "overlay");
      await run("setfattr", ["-n", "user.tsimgfs.stream", "-v", "start", device]);
      await untilHeld(slow);
      const stats = asRecord(JSON.parse(await readFile(mount.stats(image), "utf8")));
      expect(asRecord(stats["stream"])).toMatchObject({ state: "running" });
      await writeDurably(device, WRITTEN + MIB);
      process.kill(mount.daemonPid(), "SIGTERM");
      await expectGone(mount);
    });
  });

  it.concurrent("does not keep a daemon that closes its images, and loses nothing of what was written", async () => {
    const options = { args: [], leftover: "leaks" } as const;
    await withSlowMount("image", options, async (slow, mount, image, path) => {
      const place = WRITTEN + MIB;
      await run("dd", writerArgs(mount.device(image), place, "nocreat"));
      const { stdout } = await run("md5sum", [mount.device(image)]);
      slow.tell({ kind: "freeze", calls: "changes" });
      process.kill(mount.daemonPid(), "SIGTERM");
      await untilHeld(slow);
      await expectGone(mount);
      // The kernel does not end a thread that writes.
      slow.tell({ kind: "release" });
      await run("qemu-img", ["convert", "-U", "-O", "raw", path, `${path}.raw`]);
      const [expected] = stdout.split(" ");
      expect((await run("md5sum", [`${path}.raw`])).stdout.split(" ")[0]).toBe(expected);
    });
  });

  it.concurrent("is told by umount, which takes the mount out of sight with --lazy", async () => {
    const options = { args: ["-r"], threads: 2 };
    await withSlowMount("image", options, async (slow, mount, image) => {
      const reading = stuckReaderArgs(mount.device(image));
      const umount = ["umount", mount.mountPoint];
      await holdStuck(slow, "image");
      await withProgram("dd", reading, async (first) => {
        await untilHeld(slow);
        const inUse = refusalOf(await attemptTsimgfs(umount));
        expect(inUse).toMatch(new RegExp(`is in use by dd \\(pid ${first.pid}\\);.*--lazy`));
        await withProgram("dd", reading, async (second) => {
          await until("all threads wait", async () => {
            const probe = await attempt("timeout", [
              "-s",
              "KILL",
              "1",
              "stat",
              "-f",
              mount.mountPoint,
            ]);
            return probe.status !== 0;
          });
          const silent = refusalOf(await attemptTsimgfs(umount));
          expect(silent).toMatch(/does not answer.* in use by dd .*--lazy/);
          expect(mount.isMounted()).toBe(true);
          await tsimgfs(["umount", "--lazy", mount.mountPoint]);
          await expectGone(mount);
          for (const reader of [first, second]) expect(await reader.end()).not.toBe(0);
        });
      });
    });
  });
});

describe.concurrent("images that a medium does not let open", () => {
  it.each(
    casesOfTransport(
      "opening",
      [
        { whom: "daemon", signal: "SIGTERM", status: 1 },
        { whom: "command", signal: "SIGINT", status: 130 },
        { whom: "command", signal: "SIGTERM", status: 143 },
      ] as const,
      1,
    ),
  )("keep nobody: $signal for the $whom", async ({ whom, signal, status }) => {
    await withSlowImage("image", "clean", async (slow, path) => {
      const mountPoint = join(dirname(path), "mount");
      await mkdir(mountPoint);
      const mark = newMark();
      slow.tell({ kind: "hold", name: IMAGE, start: 0, end: MIB });
      const args = [MAIN, ...MOUNT_COMMAND, slow.file(IMAGE), mountPoint];
      await withProgram(
        process.execPath,
        args,
        async (command) => {
          await untilHeld(slow);
          const daemons = markedProcesses(mark).filter(
            (pid) => runsNode(pid) && pid !== command.pid,
          );
          expect(daemons).toHaveLength(1);
          for (const pid of whom === "daemon" ? daemons : [command.pid]) process.kill(pid, signal);
          expect(await command.end(ENDING_MS)).toBe(status);
          if (whom === "daemon")
            expect(command.output).toMatch(/^tsimgfs: .*ended with SIGTERM\n$/);
          await until("no process is left", () => markedProcesses(mark).length === 0);
          expect(mountAt(mountPoint)).toBeUndefined();
        },
        { [MARK]: mark },
      );
    });
  });
});

describe("a slow medium", () => {
  it("lets a daemon end in order: all is there, and nothing is leaked", async () => {
    await withSlowMount("image", { args: [] }, async (slow, mount, image, path) => {
      const place = WRITTEN + MIB;
      slow.tell({ kind: "delay", ms: 200, calls: "all" });
      await run("dd", writerArgs(mount.device(image), place, "nocreat"));
      process.kill(mount.daemonPid(), "SIGTERM");
      await expectGone(mount);
      const reads = [`read -P ${PATTERN} 0 ${WRITTEN}`, `read ${place} 64k`];
      await run("qemu-io", ["-r", "-f", "qcow2", ...reads.flatMap((each) => ["-c", each]), path]);
    });
  });
});
