// What others mount at the place of a mount, on top of it or after it, is not unmounted by the end of its daemon.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { markedProcesses } from "../support/daemon-processes.ts";
import { mountAt } from "../support/mount-table.ts";
import { mounted } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeSample } from "../support/sample-image.ts";
import { withScratch } from "../support/scratch.ts";
import { WRITTEN, withSlowMount, writerArgs } from "../support/slow-mount.ts";

/** Calls `body` while a tmpfs is mounted on a directory. */
async function withTmpfsOn(directory: string, body: () => Promise<void>): Promise<void> {
  await run("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", directory]);
  try {
    await body();
    expect(mountAt(directory)?.type).toBe("tmpfs");
  } finally {
    if (mountAt(directory)?.type === "tmpfs") await run("umount", [directory]);
  }
}

describe.skipIf(!IS_ROOT)("what others mount where a mount is, or was (needs root)", () => {
  it("stays when a daemon that closes its images is told to end", async () => {
    await withSlowMount("image", { args: [] }, async (slow, mount, image) => {
      await run("dd", writerArgs(mount.device(image), WRITTEN, "nocreat"));
      slow.tell({ kind: "freeze", calls: "changes" });
      await run("umount", [mount.mountPoint]);
      await until("the image is being closed", async () => (await slow.report()).held > 0);
      await withTmpfsOn(mount.mountPoint, async () => {
        process.kill(mount.daemonPid(), "SIGTERM");
        slow.tell({ kind: "release" });
        // Also what the daemon may have called to unmount.
        await until("all have ended", () => markedProcesses(mount.mark).length === 0);
      });
    });
  });

  it("stays on top of a mount that is told to end, which says so, and ends later", async () => {
    await withScratch("covered", async (directory) => {
      const { path } = await makeSample(directory, "vm.qcow2");
      const log = join(directory, "log");
      await mounted([path], { args: ["--log-file", log] }, async (mount) => {
        const pid = mount.daemonPid();
        await withTmpfsOn(mount.mountPoint, async () => {
          process.kill(pid, "SIGTERM");
          await until("it says so", async () =>
            /: something else is mounted on top of it;/.test(await readFile(log, "utf8")),
          );
        });
        expect((await attempt("stat", [mount.device(path)])).status).toBe(0);
        process.kill(pid, "SIGTERM");
        await until("the daemon is gone", () => mount.daemonPids().length === 0);
        expect(mount.isMounted()).toBe(false);
      });
    });
  });
});
