// How a mount begins and ends: background, foreground, several images, a file as mount point, the list of mounts.

import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MARK, newMark } from "../support/daemon-processes.ts";
import { expectSameBytes } from "../support/device-content.ts";
import { withProgram } from "../support/foreground.ts";
import { mountAt } from "../support/mount-table.ts";
import { Mount, makeMountPoint, mounted, refusedMount, startMount } from "../support/mounted.ts";
import { MAIN } from "../support/repository.ts";
import { run, until } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { itNeeds, MOUNT_COMMAND, TRANSPORT_NOTE } from "../support/transport.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

describe("a mount", () => {
  let directory = "";
  let sample: SampleImage;
  let other: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("lifecycle");
    sample = await makeSample(directory, "vm.qcow2");
    other = await makeSample(directory, "data.qed", { format: "qed" });
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it("is usable when the command returns, and its daemon is gone when umount returns", async () => {
    const mount = await startMount([sample.path]);
    try {
      expect(mountAt(mount.mountPoint)?.type).toBe("fuse.tsimgfs");
      await expectSameBytes(mount.device(sample.path), sample.expected, "at once");
      expect(mount.daemonPids()).toHaveLength(1);
      await tsimgfs(["umount", mount.mountPoint]);
      expect(mount.isMounted()).toBe(false);
      expect(mount.daemonPids()).toEqual([]);
    } finally {
      await mount.stop();
    }
  });

  it("prints nothing when all is well, but what the transport lacks", async () => {
    const { mountPoint, ownDirectory } = await makeMountPoint("directory");
    const mount = new Mount(mountPoint, newMark(), undefined, ownDirectory);
    try {
      const { stdout, stderr } = await tsimgfs([...MOUNT_COMMAND, sample.path, mountPoint], {
        env: { [MARK]: mount.mark },
      });
      expect(stdout).toBe("");
      expect(stderr).toMatch(TRANSPORT_NOTE);
    } finally {
      await mount.stop();
    }
  });

  it.each(["SIGTERM", "SIGINT"] as const)(
    "stays in the foreground with -f and ends cleanly on %s",
    async (signal) => {
      const { mountPoint, ownDirectory } = await makeMountPoint("directory");
      const mount = new Mount(mountPoint, newMark(), undefined, ownDirectory);
      try {
        await withProgram(
          process.execPath,
          [MAIN, ...MOUNT_COMMAND, "-f", sample.path, mountPoint],
          async (program) => {
            await until(`mounted: ${program.output}`, () => mount.isMounted());
            await expectSameBytes(mount.device(sample.path), sample.expected, "foreground");
            expect(program.isRunning).toBe(true);
            program.kill(signal);
            expect(await program.end()).toBe(0);
          },
          { [MARK]: mount.mark },
        );
        expect(mount.isMounted()).toBe(false);
      } finally {
        await mount.stop();
      }
    },
  );

  it.each(["SIGTERM", "SIGINT"] as const)(
    "ends on %s to its background process",
    async (signal) => {
      await mounted([sample.path], {}, async (mount) => {
        process.kill(mount.daemonPid(), signal);
        await until("unmounted", () => !mount.isMounted());
        await until("the daemon is gone", () => mount.daemonPids().length === 0);
      });
    },
  );

  it("ends when someone else unmounts it", async () => {
    await mounted([sample.path], {}, async (mount) => {
      await run("umount", [mount.mountPoint]);
      await until("the daemon is gone", () => mount.daemonPids().length === 0);
    });
  });

  it("shows several images side by side", async () => {
    await mounted([sample.path, other.path], {}, async (mount) => {
      await expectSameBytes(mount.device(sample.path), sample.expected, "first");
      await expectSameBytes(mount.device(other.path), other.expected, "second");
    });
  });

  it("refuses images whose devices would have equal names, and names both", async () => {
    const below = join(directory, "below");
    await mkdir(below);
    const twin = await makeSample(below, "vm.qed", { format: "qed" });
    const line = await refusedMount([sample.path, twin.path]);
    expect(line).toContain(sample.path);
    expect(line).toContain(twin.path);
  });

  itNeeds("file-mountpoint")("turns a regular file into the device of a single image", async () => {
    await mounted([sample.path], { mountPointKind: "file" }, async (mount) => {
      await expectSameBytes(mount.mountPoint, sample.expected, "file as mount point");
    });
  });

  it("refuses a regular file as mount point of several images", async () => {
    const line = await refusedMount([sample.path, other.path], { mountPointKind: "file" });
    expect(line).toMatch(/device: .*(file|directory)/);
  });

  it("is in the list while it is active", async () => {
    const mountPoint = await mounted([sample.path], {}, async (mount) => {
      expect((await tsimgfs(["list"])).stdout).toContain(mount.mountPoint);
      const { stdout } = await tsimgfs(["list", "--output", "json"]);
      expect(Array.isArray(JSON.parse(stdout))).toBe(true);
      expect(stdout).toContain(JSON.stringify(mount.mountPoint));
      return mount.mountPoint;
    });
    expect((await tsimgfs(["list"])).stdout).not.toContain(mountPoint);
  });

  it("is not made twice at the same place without -o nonempty", async () => {
    await mounted([sample.path], {}, async (mount) => {
      await refusedMount([other.path], { mountPoint: mount.mountPoint });
      await expectSameBytes(mount.device(sample.path), sample.expected, "after the refusal");
    });
  });

  it("leaves an empty directory behind", async () => {
    const { mountPoint } = await makeMountPoint("directory");
    await mounted([sample.path], { mountPoint }, async () => {});
    expect(await readdir(mountPoint)).toEqual([]);
  });

  it("cannot be unmounted where nothing is mounted", async () => {
    await expectRefusal(["umount", directory], [/not.*mounted|no.*mount/i]);
  });
});
