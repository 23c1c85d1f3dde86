// Mounts by an ordinary user, through fusermount3.

import { existsSync, readFileSync } from "node:fs";
import { chmod, chown, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { mountAt } from "../support/mount-table.ts";
import { mounted, refusedMount } from "../support/mounted.ts";
import { ORDINARY_USER, ordinaryUserObstacle } from "../support/ordinary-user.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { itNeeds } from "../support/transport.ts";

const identity = ORDINARY_USER;
/** True if /etc/fuse.conf lets users open their mounts to others. */
function usersMayAllowOther(): boolean {
  const file = "/etc/fuse.conf";
  return existsSync(file) && /^\s*user_allow_other/m.test(readFileSync(file, "utf8"));
}

const obstacle = ordinaryUserObstacle();

describe.skipIf(obstacle !== undefined)(
  `a mount by an ordinary user${obstacle ? ` (${obstacle})` : ""}`,
  () => {
    let directory = "";
    let sample: SampleImage;

    beforeAll(async () => {
      directory = await makeScratch("user", identity);
      sample = await makeSample(directory, "vm.qcow2");
      await chown(sample.path, identity.uid, identity.gid);
      await chmod(sample.path, 0o600);
    });

    afterAll(async () => {
      await rm(directory, { recursive: true, force: true });
    });

    it("can be read by that user, through the page cache and O_DIRECT", async () => {
      await mounted([sample.path], { identity }, async (mount) => {
        const device = mount.device(sample.path);
        await run("cmp", [device, sample.expected], { identity });
        const copy = join(directory, "copy");
        await run("dd", [`if=${device}`, `of=${copy}`, "bs=64k", "iflag=direct"], { identity });
        await run("cmp", [copy, sample.expected]);
        expect(mountAt(mount.mountPoint)?.options).toEqual(
          expect.arrayContaining(["nosuid", "nodev", "rw"]),
        );
      });
    });

    it("can be written by that user", async () => {
      const image = join(directory, "scratch.qcow2");
      await run("qemu-img", ["create", "-q", "-f", "qcow2", image, "4M"], { identity });
      await mounted([image], { identity }, async (mount) => {
        const where = ["bs=4k", "seek=7", "conv=notrunc,fsync", "status=none"];
        const write = [`if=${sample.expected}`, `of=${mount.device(image)}`, "count=100", ...where];
        await run("dd", write, { identity });
      });
      const copy = join(directory, "scratch.expected");
      await run("dd", [`if=${sample.expected}`, `of=${copy}`, "bs=4k", "seek=7", "count=100"]);
      await run("truncate", ["-s", "4M", copy]);
      await run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", image, copy]);
      await run("qemu-img", ["check", image]);
    });

    it.each([
      { args: [], mode: "600" },
      { args: ["-r"], mode: "400" },
    ])("belongs to that user, with device mode $mode with $args", async ({ args, mode }) => {
      await mounted([sample.path], { identity, args }, async (mount) => {
        const paths = [mount.mountPoint, mount.device(sample.path), mount.stats(sample.path)];
        const { stdout } = await run("stat", ["--format=%a %u %g", ...paths], { identity });
        expect(stdout.trimEnd().split("\n")).toEqual([
          "500 65534 65534",
          `${mode} 65534 65534`,
          "400 65534 65534",
        ]);
      });
    });

    it("is closed to others, root included", async () => {
      await mounted([sample.path], { identity }, async (mount) => {
        expect((await attempt("cat", [mount.stats(sample.path)])).stderr).toMatch(
          /Permission denied/,
        );
      });
    });

    it("ends with fusermount3 -u as well", async () => {
      await mounted([sample.path], { identity }, async (mount) => {
        await run("fusermount3", ["-u", mount.mountPoint], { identity });
        await until("the daemon is gone", () => mount.daemonPids().length === 0);
      });
    });

    itNeeds("file-mountpoint")("can have a file as its mount point", async () => {
      await mounted([sample.path], { identity, mountPointKind: "file" }, async (mount) => {
        await run("cmp", [mount.mountPoint, sample.expected], { identity });
      });
    });

    it("is refused for an image that the user may not read", async () => {
      const secret = await makeSample(directory, "secret.qcow2");
      await chmod(secret.path, 0o600);
      expect(await refusedMount([secret.path], { identity })).toMatch(
        /secret\.qcow2: .*permission denied/i,
      );
    });

    it("is refused for an image that the user may not write to, unless it is read-only", async () => {
      const fixed = await makeSample(directory, "fixed.qcow2");
      await chown(fixed.path, 0, 0);
      await chmod(fixed.path, 0o644);
      expect(await refusedMount([fixed.path], { identity })).toMatch(
        /fixed\.qcow2: .*permission denied/i,
      );
      await mounted([fixed.path], { identity, args: ["-r"] }, async (mount) => {
        await run("cmp", [mount.device(fixed.path), fixed.expected], { identity });
      });
    });

    it("is refused on a directory of someone else", async () => {
      const foreign = await makeScratch("foreign");
      try {
        const line = await refusedMount([sample.path], { identity, mountPoint: foreign });
        expect(line).toContain(foreign);
      } finally {
        await rm(foreign, { recursive: true });
      }
    });

    it.skipIf(usersMayAllowOther())(
      "is refused with allow_other where /etc/fuse.conf does not allow it, which the line says",
      async () => {
        const line = await refusedMount([sample.path], { identity, args: ["-o", "allow_other"] });
        expect(line).toMatch(/user_allow_other/);
      },
    );
  },
);
