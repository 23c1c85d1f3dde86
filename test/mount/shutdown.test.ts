// Ends that are not clean: a device in use when the daemon is told to stop, and a daemon that was killed.

import { existsSync } from "node:fs";
import { open, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { withProgram } from "../support/foreground.ts";
import { mountTable } from "../support/mount-table.ts";
import { makeMountPoint, mounted } from "../support/mounted.ts";
import { attempt, until } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

/** Opens the device, says so, waits for a line, and then compares what it reads. */
const HOLDER = 'exec 3<"$0"; echo open; read -r line; cmp - "$1" <&3 && echo same';

describe("a mount that does not end by the book", () => {
  let directory = "";
  let sample: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("shutdown");
    sample = await makeSample(directory, "vm.qcow2");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it("keeps serving an open device after SIGTERM, until the last close", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const args = ["-c", HOLDER, mount.device(sample.path), sample.expected];
      await withProgram("sh", args, async (holder) => {
        await until("the device is open", () => holder.output.includes("open"));
        process.kill(mount.daemonPid(), "SIGTERM");
        await until("the mount is out of the tree", () => !mount.isMounted());
        expect(mount.daemonPids()).toHaveLength(1);
        holder.write("go\n");
        expect(await holder.end()).toBe(0);
        expect(holder.output).toContain("same");
      });
      await until("the daemon is gone", () => mount.daemonPids().length === 0);
    });
  });

  it("refuses to unmount a device in use, which goes on working", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const args = ["-c", HOLDER, mount.device(sample.path), sample.expected];
      await withProgram("sh", args, async (holder) => {
        await until("the device is open", () => holder.output.includes("open"));
        const line = refusalOf(await attemptTsimgfs(["umount", mount.mountPoint]));
        expect(line).toContain(mount.mountPoint);
        expect(mount.isMounted()).toBe(true);
        holder.write("go\n");
        expect(await holder.end()).toBe(0);
      });
    });
  });

  it("is unmounted also if somebody looks at it at that moment", async () => {
    const tried = join(directory, "tried");
    // In the place of the program that unmounts: tells that it was in vain.
    const script = `#!/bin/sh\nPATH="$OWN_PATH" fusermount3 "$@" || { touch '${tried}'; exit 1; }\n`;
    await writeFile(join(directory, "fusermount3"), script, { mode: 0o755 });
    const { PATH = "" } = process.env;
    const env = { PATH: `${directory}:${PATH}`, OWN_PATH: PATH };
    await mounted([sample.path], {}, async (mount) => {
      const looker = await open(mount.device(sample.path));
      const command = attemptTsimgfs(["umount", mount.mountPoint], { env });
      await until("it was tried once", () => existsSync(tried));
      await looker.close();
      expect(await command).toMatchObject({ status: 0, stderr: "" });
      expect(mount.isMounted()).toBe(false);
    });
  });

  it("can be replaced at the same place after its daemon was killed", async () => {
    const { mountPoint } = await makeMountPoint("directory");
    await mounted([sample.path], { mountPoint }, async (dead) => {
      process.kill(dead.daemonPid(), "SIGKILL");
      await until("the daemon is gone", () => dead.daemonPids().length === 0);
      expect((await attempt("stat", [dead.device(sample.path)])).stderr).toMatch(
        /not connected|connection abort/,
      );
      await mounted([sample.path], { mountPoint }, async (mount) => {
        await expectSameBytes(mount.device(sample.path), sample.expected, "new mount");
        const here = mountTable().filter((entry) => entry.mountPoint === mountPoint);
        expect(here).toHaveLength(1);
      });
    });
  });

  it("is known to be dead also if the kernel still has its attributes", async () => {
    const { mountPoint } = await makeMountPoint("directory");
    await mounted([sample.path], { mountPoint }, async (dead) => {
      // The first one to ask for all attributes finds that some do not exist, the second one that the others are known.
      for (let times = 0; times < 2; times++) await stat(mountPoint);
      process.kill(dead.daemonPid(), "SIGKILL");
      await until("the daemon is gone", () => dead.daemonPids().length === 0);
      const { stdout } = await tsimgfs(["list"]);
      expect(stdout).toMatch(new RegExp(`^${mountPoint} +stale `, "m"));
      await mounted([sample.path], { mountPoint }, async (mount) => {
        await expectSameBytes(mount.device(sample.path), sample.expected, "new mount");
      });
    });
  });

  it("can be unmounted after its daemon was killed", async () => {
    await mounted([sample.path], {}, async (mount) => {
      process.kill(mount.daemonPid(), "SIGKILL");
      await until("the daemon is gone", () => mount.daemonPids().length === 0);
      await tsimgfs(["umount", mount.mountPoint]);
      expect(mount.isMounted()).toBe(false);
    });
  });

  it("gives up its locks on the image when its daemon is killed", async () => {
    await mounted([sample.path], {}, async (mount) => {
      process.kill(mount.daemonPid(), "SIGKILL");
      await until("the daemon is gone", () => mount.daemonPids().length === 0);
      const write = ["-f", "qcow2", "-c", "write -z 0 0", sample.path];
      // Its last thread may have its files a moment longer than it has a program.
      await until("QEMU may write", async () => (await attempt("qemu-io", write)).status === 0);
    });
  });
});
