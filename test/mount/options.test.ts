// The -o options of a mount, and what the kernel's mount table says of them.

import { readFile, rm } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { mountAt } from "../support/mount-table.ts";
import { type Mount, makeMountPoint, mounted, refusedMount } from "../support/mounted.ts";
import { IS_ROOT, ORDINARY_USER } from "../support/ordinary-user.ts";
import { attempt, run } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport, itNeeds, itOnce } from "../support/transport.ts";

const identity = ORDINARY_USER;

async function modesAndOwners(mount: Mount, image: string): Promise<string[]> {
  const paths = [mount.mountPoint, mount.device(image), mount.stats(image)];
  const { stdout } = await run("stat", ["--format=%a %u %g", ...paths]);
  return stdout.trimEnd().split("\n");
}

describe.skipIf(!IS_ROOT)("mount options (need root)", () => {
  let directory = "";
  let sample: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("options");
    sample = await makeSample(directory, "vm.qcow2");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  function withOptions<T>(options: string, body: (mount: Mount) => Promise<T>): Promise<T> {
    return mounted([sample.path], { args: ["-o", options] }, body);
  }

  it.each(
    casesOfTransport(
      "access",
      [
        { args: ["-r"], wanted: "ro" },
        { args: ["-o", "ro"], wanted: "ro" },
        { args: ["-o", "rw"], wanted: "rw" },
        { args: [], wanted: "rw" },
      ],
      1,
    ),
  )("make a mount with $args $wanted", async ({ args, wanted }) => {
    await mounted([sample.path], { args }, async (mount) => {
      expect(mountAt(mount.mountPoint)?.options).toContain(wanted);
    });
  });

  it("always include nosuid, nodev and default_permissions", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const entry = mountAt(mount.mountPoint);
      expect(entry?.options).toEqual(expect.arrayContaining(["nosuid", "nodev"]));
      expect(entry?.superOptions).toContain("default_permissions");
    });
  });

  it.each(
    casesOfTransport(
      "modes",
      [
        { args: [], wanted: ["500 0 0", "600 0 0", "400 0 0"] },
        { args: ["-r"], wanted: ["500 0 0", "400 0 0", "400 0 0"] },
      ],
      1,
    ),
  )("give the mounting user the modes $wanted with $args", async ({ args, wanted }) => {
    await mounted([sample.path], { args }, async (mount) => {
      expect(await modesAndOwners(mount, sample.path)).toEqual(wanted);
    });
  });

  it("give files to uid= and gid=", async () => {
    await withOptions("uid=1234,gid=2345", async (mount) => {
      expect(await modesAndOwners(mount, sample.path)).toEqual([
        "500 1234 2345",
        "600 1234 2345",
        "400 1234 2345",
      ]);
    });
  });

  it.each(
    casesOfTransport(
      "umask",
      [
        ["022", ["555 0 0", "644 0 0", "444 0 0"]],
        ["0027", ["550 0 0", "640 0 0", "440 0 0"]],
        ["077", ["500 0 0", "600 0 0", "400 0 0"]],
        ["022,ro", ["555 0 0", "444 0 0", "444 0 0"]],
      ] as const,
      1,
    ),
  )("take the bits of umask=%s from the modes", async (umask, wanted) => {
    await withOptions(`umask=${umask}`, async (mount) => {
      expect(await modesAndOwners(mount, sample.path)).toEqual(wanted);
    });
  });

  it("open the mount to others with allow_other, as far as modes allow", async () => {
    await withOptions("allow_other,umask=022", async (mount) => {
      await run("cmp", [mount.device(sample.path), sample.expected], { identity });
      const write = [`of=${mount.device(sample.path)}`, "if=/dev/zero", "count=1", "conv=notrunc"];
      expect((await attempt("dd", write, { identity })).stderr).toMatch(/Permission denied/);
    });
    await withOptions("allow_other", async (mount) => {
      const { stderr } = await attempt("cat", [mount.device(sample.path)], { identity });
      expect(stderr).toMatch(/Permission denied/);
    });
    await withOptions(`allow_other,uid=${identity.uid}`, async (mount) => {
      await run("cmp", [mount.device(sample.path), sample.expected], { identity });
    });
  });

  it("keep others out without allow_other, whatever the modes", async () => {
    await withOptions("umask=022", async (mount) => {
      const { stderr } = await attempt("cat", [mount.device(sample.path)], { identity });
      expect(stderr).toMatch(/Permission denied/);
    });
  });

  itOnce("refuse allow_root and say why", async () => {
    const line = await refusedMount([sample.path], { args: ["-o", "allow_root"] });
    expect(line).toMatch(/allow_root.*allow_other/);
  });

  it("show fsname= as the source of the mount", async () => {
    await withOptions("fsname=my-disks", async (mount) => {
      expect(mountAt(mount.mountPoint)?.source).toBe("my-disks");
      expect(mountAt(mount.mountPoint)?.type).toBe("fuse.tsimgfs");
    });
  });

  it("show max_read= in the options of the file system", async () => {
    await withOptions("max_read=65536", async (mount) => {
      expect(mountAt(mount.mountPoint)?.superOptions).toContain("max_read=65536");
      await run("cmp", [mount.device(sample.path), sample.expected]);
    });
  });

  it.each(
    casesOfTransport(
      "read-ahead",
      [
        ["ro", "1024"],
        ["read_ahead_kb=256", "256"],
        ["read_ahead_kb=4096", "4096"],
      ],
      1,
    ),
  )("with %s set the read-ahead to %s KiB", async (options, wanted) => {
    await withOptions(options, async (mount) => {
      const device = mountAt(mount.mountPoint)?.device ?? "";
      const value = await readFile(`/sys/class/bdi/${device}/read_ahead_kb`, "utf8");
      expect(value.trim()).toBe(wanted);
    });
  });

  it("can be given in several -o and in one", async () => {
    const args = ["-o", "uid=7,gid=8", "-o", "fsname=several"];
    await mounted([sample.path], { args }, async (mount) => {
      expect(mountAt(mount.mountPoint)?.source).toBe("several");
      expect((await modesAndOwners(mount, sample.path))[0]).toBe("500 7 8");
    });
  });

  itOnce.each([
    "no_such_option",
    "no_such=1",
    "uid=x",
    "umask=999",
    "max_read=-1",
    "read_ahead_kb=x",
  ])("refuse %s by name", async (option) => {
    const line = await refusedMount([sample.path], { args: ["-o", option] });
    expect(line).toContain(option.split("=")[0]);
  });

  it("accept a mount point that is not empty with nonempty only", async () => {
    const { mountPoint, ownDirectory } = await makeMountPoint("directory");
    try {
      await run("touch", [`${mountPoint}/file`]);
      expect(await refusedMount([sample.path], { mountPoint })).toMatch(/not empty/);
      await mounted([sample.path], { mountPoint, args: ["-o", "nonempty"] }, async (mount) => {
        await run("cmp", [mount.device(sample.path), sample.expected]);
      });
    } finally {
      await rm(ownDirectory, { recursive: true });
    }
  });

  itNeeds("threads").each(["1", "2", "16"])("serve with --threads %s", async (threads) => {
    await mounted([sample.path], { args: ["--threads", threads] }, async (mount) => {
      await run("cmp", [mount.device(sample.path), sample.expected]);
    });
  });

  itOnce.each(["0", "-1", "x", "1.5", "100000"])("refuse --threads %s", async (threads) => {
    await refusedMount([sample.path], { args: [`--threads=${threads}`] });
  });
});
