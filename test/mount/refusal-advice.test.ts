// What a new user runs into, and an ordinary one: one line that names the file, and what to do next.

import { chmod, mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Foreground } from "../support/foreground.ts";
import { mounted } from "../support/mounted.ts";
import { IS_ROOT, ORDINARY_USER, ordinaryUserObstacle } from "../support/ordinary-user.ts";
import { createImage } from "../support/qemu.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, type RunResult, run, until } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { describeOnce, itOnce, MOUNT_COMMAND } from "../support/transport.ts";
import { attemptTsimgfs, expectRefusal, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;
const identity = ORDINARY_USER;
const obstacle = ordinaryUserObstacle();

let directory = "";
let image = "";

beforeAll(async () => {
  directory = await makeScratch("advice");
  image = join(directory, "vm.qcow2");
  await createImage(image, "qcow2", { size: 4 * MIB });
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

async function emptyDirectory(name: string): Promise<string> {
  const path = join(directory, name);
  await mkdir(path);
  return path;
}

describe("an image", () => {
  itOnce("whose backing file is gone: how to name another one", async () => {
    const overlay = join(directory, "lost.qcow2");
    const gone = join(directory, "gone.qcow2");
    await run("qemu-img", ["create", "-qu", "-f", "qcow2", "-b", gone, "-F", "raw", overlay, "1M"]);
    await expectRefusal(
      ["convert", overlay, join(directory, "out.raw")],
      [
        /gone\.qcow2: no such file \(backing file of .*lost\.qcow2; tsimgfs rebase -u names it anew\)/,
      ],
    );
  });

  itOnce.each([
    ["no-such.qcow2", /no-such\.qcow2: no such file$/],
    [".", /\.: is a directory$/],
    ["empty", /empty: is empty, .* state the format with --format$/],
  ])("%s that is none", async (name, reason) => {
    await writeFile(join(directory, "empty"), "");
    await expectRefusal(["info", name], [reason], { cwd: directory });
  });

  it("that is mounted: by which process", async () => {
    await mounted([image], {}, async (mount) => {
      const [pid] = mount.daemonPids();
      await expectRefusal(["check", image], [`(pid ${pid})`, /: is in use by tsimgfs mount /]);
    });
  });
});

describe.skipIf(obstacle !== undefined)(
  `an ordinary user${obstacle ? ` (${obstacle})` : ""}`,
  () => {
    itOnce("who may not write to an image is told whose it is, and by mount of -r", async () => {
      const target = join(directory, "users-mount");
      await mkdir(target);
      await run("chown", [`${identity.uid}:${identity.gid}`, target]);
      const denied = /vm\.qcow2: permission denied to write to it: it belongs to root, mode 0644/;
      await expectRefusal(["mount", image, target], [denied, /; -r mounts it read-only$/], {
        identity,
      });
      for (const args of [
        ["resize", image, "8M"],
        ["snapshot", "-c", "x", image],
        ["check", "-r", "all", image],
        ["amend", "-o", "compat=0.10", image],
        ["bitmap", "--add", image, "x"],
        ["rebase", "-u", "-b", "", image],
        ["bench", "-w", image],
      ]) {
        const line = refusalOf(await attemptTsimgfs(args, { identity }));
        expect(line).toMatch(denied);
        expect(line).not.toContain("-r mounts");
      }
    });

    it("mounts only on what is his", async () => {
      const target = await emptyDirectory("roots");
      await expectRefusal(
        [...MOUNT_COMMAND, "-r", image, target],
        [/roots: .*a mount point must be yours/],
        {
          identity,
        },
      );
    });

    itOnce("learns whose a mount point is, and what is wrong with the place of a log", async () => {
      const closed = await emptyDirectory("closed-to-users");
      await chmod(closed, 0o700);
      const target = await emptyDirectory("logged");
      await run("chown", [`${identity.uid}:${identity.gid}`, target]);
      const denied = /: permission denied: it belongs to root, mode 0700$/;
      await expectRefusal(["mount", "-r", image, closed], [denied], { identity });
      const logged = (log: string): string[] => ["mount", "-r", "--log-file", log, image, target];
      for (const [log, reason] of [
        ["/nowhere/log", /log: the log cannot be written: there is no such directory$/],
        [directory, /: the log cannot be written: is a directory$/],
        [join(directory, "log"), /permission denied: no file can be made in its directory$/],
      ] as const) {
        await expectRefusal(logged(log), [reason], { identity });
      }
    });

    itOnce("who opens a mount to others learns where that is allowed", async () => {
      const target = await emptyDirectory("others");
      await run("chown", [`${identity.uid}:${identity.gid}`, target]);
      // Whatever this host allows.
      await writeFile(join(directory, "fuse.conf"), "# nothing\n");
      const script = `mount --bind fuse.conf /etc/fuse.conf
        exec setpriv --reuid=${identity.uid} --regid=${identity.gid} --clear-groups "$@"`;
      const command = [process.execPath, MAIN, "mount", "-r", "-o", "allow_other", image, target];
      const result = await attempt(
        "unshare",
        ["--mount", "--propagation=private", "sh", "-ec", script, "sh", ...command],
        { cwd: directory },
      );
      expect(refusalOf(result)).toBe(
        `tsimgfs: ${target}: allow_other needs the line user_allow_other in /etc/fuse.conf, or root`,
      );
    });

    it("without fusermount3 learns of its package", async () => {
      const target = await emptyDirectory("no-fusermount");
      // The last one to be hidden may hold the program that hides it.
      const script = `touch node; mount --bind "$0" node
        for hidden in /usr/local/sbin /usr/sbin /sbin /usr/bin /bin; do
          mount -t tmpfs none $hidden 2>&- || :
        done
        exec ./node "$@"`;
      const command = [process.execPath, MAIN, ...MOUNT_COMMAND, "-r", image, target];
      const result = await attempt(
        "unshare",
        ["--mount", "--propagation=private", "sh", "-c", script, ...command],
        { cwd: directory },
      );
      expect(refusalOf(result)).toMatch(
        /fusermount3: not found in PATH, nor in \/usr\/bin; install the package fuse3$/,
      );
    });

    itOnce.each(["", "/nowhere"])("finds fusermount3 with PATH=%s", async (PATH) => {
      const target = await emptyDirectory(`path-${PATH.length}`);
      // Nor is a program taken from the working directory.
      await writeFile(join(directory, "fusermount3"), "#!/bin/sh\nexit 1\n", { mode: 0o755 });
      const node = (args: readonly string[]): Promise<RunResult> =>
        run(process.execPath, [MAIN, ...args], { cwd: directory, env: { PATH } });
      await node([...MOUNT_COMMAND, "-r", image, target]);
      expect(await readdir(target)).toContain("vm.raw");
      await node(["umount", target]);
      expect(await readdir(target)).toEqual([]);
    });

    /** In a mount namespace of its own, after what `prepare` does to /dev there. */
    async function mountWithDevice(prepare: string, name: string): Promise<RunResult> {
      const target = await emptyDirectory(name);
      await run("chown", [`${identity.uid}:${identity.gid}`, target]);
      const script = `${prepare}\nexec setpriv --reuid=${identity.uid} --regid=${identity.gid} --clear-groups "$@"`;
      const command = [process.execPath, MAIN, ...MOUNT_COMMAND, "-r", image, target];
      return attempt(
        "unshare",
        ["--mount", "--propagation=private", "sh", "-ec", script, "sh", ...command],
        { cwd: directory },
      );
    }

    it("for whom /dev/fuse is closed, or missing, learns how to open it", async () => {
      const closed = "mknod fuse c 10 229; chmod 600 fuse; mount --bind fuse /dev/fuse";
      expect(refusalOf(await mountWithDevice(closed, "closed"))).toMatch(
        /\/closed: \/dev\/fuse is closed to this user; as root: chmod 666 \/dev\/fuse$/,
      );
      const missing =
        "mkdir dev; mount -t tmpfs none dev; mknod -m 666 dev/null c 1 3; mknod -m 666 dev/urandom c 1 9; mount --rbind dev /dev";
      expect(refusalOf(await mountWithDevice(missing, "missing"))).toMatch(
        /\/missing: \/dev\/fuse does not exist; load the module with: modprobe fuse$/,
      );
    });
  },
);

describe("a mount point", () => {
  it.each([
    ["that is missing", "nowhere", /nowhere: no such directory; make it with mkdir$/],
    ["that is not empty", ".", /is not empty; mount over it all the same with -o nonempty$/],
    ["that is a device", "/dev/null", /\/dev\/null: is neither a directory nor a regular file$/],
  ])("%s", async (_, target, reason) => {
    await expectRefusal([...MOUNT_COMMAND, image, target], [reason], { cwd: directory });
  });

  it("that is one already", async () => {
    await mounted([image], {}, async ({ mountPoint }) => {
      await expectRefusal(
        [...MOUNT_COMMAND, "-r", image, mountPoint],
        [/: is a mount of tsimgfs already; tsimgfs umount ends it$/],
      );
    });
  });

  itOnce("whose daemon was killed: how to clear it", async () => {
    const target = await emptyDirectory("stale");
    await mounted([image], { mountPoint: target }, async (mount) => {
      const device = mount.device(image);
      process.kill(mount.daemonPid(), "SIGKILL");
      await until("it is gone", () => mount.daemonPids().length === 0);
      const stale = (path: string): string =>
        `tsimgfs: ${path}: its daemon is dead; tsimgfs umount clears the mount`;
      for (const args of [
        ["info", device],
        ["convert", device, join(directory, "out.raw")],
        ["resize", device, "+1M"],
        ["snapshot", "-l", device],
        ["stats", device],
        ["stream", device],
      ]) {
        expect(refusalOf(await attemptTsimgfs(args))).toBe(stale(device));
      }
      for (const args of [
        ["stats", target],
        ["info", target],
      ]) {
        expect(refusalOf(await attemptTsimgfs(args))).toBe(stale(target));
      }
      const { stdout } = await tsimgfs(["list"]);
      expect(stdout).toMatch(new RegExp(`^${target} +stale `, "m"));
      await tsimgfs(["umount", target]);
      expect(await readdir(target)).toEqual([]);
    });
  });

  itOnce("that is in no directory; and one with an odd name", async () => {
    await expectRefusal(
      ["mount", image, join(image, "x")],
      [/vm\.qcow2\/x: a part of the path is not a directory$/],
    );
    const odd = "a mount\npoint \u{1f4bf}";
    await mkdir(join(directory, odd));
    await tsimgfs(["mount", "-r", image, join(directory, odd)]);
    await tsimgfs(["umount", join(directory, odd)]);
  });

  it("where somebody is: who", async () => {
    await mounted([image], {}, async ({ mountPoint }) => {
      const script = 'cd "$1" && read line';
      const user = new Foreground("sh", ["-c", script, "sh", mountPoint], {});
      try {
        const isBusy = async (): Promise<boolean> => {
          const { stdout } = await attempt("readlink", [`/proc/${user.pid}/cwd`]);
          return stdout.trim() === mountPoint;
        };
        await until("the shell is there", isBusy);
        await expectRefusal(
          ["umount", mountPoint],
          [`: is in use by sh (pid ${user.pid}); end that, or unmount with --lazy`],
        );
      } finally {
        await user.dispose();
      }
    });
  });
});

describeOnce.skipIf(!IS_ROOT)("a disk that is full", () => {
  it("is named; a new target is removed, and one that was there before is said to be incomplete", async () => {
    const source = join(directory, "random.raw");
    await run("dd", ["if=/dev/urandom", `of=${source}`, "bs=1M", "count=4", "status=none"]);
    const full = await emptyDirectory("full");
    await run("mount", ["-t", "tmpfs", "-o", "size=1M", "none", full]);
    try {
      const target = join(full, "vm.raw");
      for (const args of [["convert"], ["convert", "-O", "qcow2"]]) {
        await expectRefusal([...args, source, target], [/vm\.raw: .*ENOSPC, no space is left/]);
        expect(await readdir(full)).toEqual([]);
      }
      await expectRefusal(["dd", `if=${source}`, `of=${target}`], [/no space is left/]);
      expect(await readdir(full)).toEqual([]);
      await writeFile(target, "");
      await expectRefusal(
        ["convert", source, target],
        [
          /no space is left on its file system; .*vm\.raw was there before, and is not complete now$/,
        ],
      );
      expect((await stat(target)).size).toBeGreaterThan(0);
    } finally {
      await run("umount", [full]);
    }
  });
});

describe("--verbose and --quiet", () => {
  itOnce.each([[["-v", "info"]], [["info", "-v"]], [["--verbose", "info"]]])(
    "%j tells steps on standard error, and only there",
    async (args) => {
      const plain = await tsimgfs(["info", image]);
      const verbose = await tsimgfs([...args, image]);
      expect(plain.stderr).toBe("");
      expect(verbose.stdout).toBe(plain.stdout);
      expect(verbose.stderr).toMatch(/^tsimgfs: open: .*vm\.qcow2, read-only$/m);
    },
  );

  it("tell, or do not tell, of a mount; the daemon keeps no terminal", async () => {
    const target = await emptyDirectory("verbose");
    const { stderr } = await tsimgfs([...MOUNT_COMMAND, "-v", image, target]);
    expect(stderr).toMatch(/^tsimgfs: mount: process \d+ serves .*verbose$/m);
    const ended = await tsimgfs(["umount", "--verbose", target]);
    expect(ended.stderr).toMatch(/^tsimgfs: run: fusermount3 -u -- .*verbose$/m);
  });

  itOnce.each([[["-q", "convert"]], [["convert", "-q"]]])(
    "%j: a warning is not printed, an error is",
    async (args) => {
      const overlay = join(directory, "no-format.qcow2");
      await createImage(overlay, "qcow2", { backing: { file: image, format: "qcow2" } });
      const bytes = await readFile(overlay);
      // The extension that states the format of the backing file becomes an unknown one.
      bytes.writeUInt32BE(0x12345678, bytes.indexOf(Buffer.from("e2792aca", "hex")));
      await writeFile(overlay, bytes);
      const copy = join(directory, "copy.raw");
      const loud = await tsimgfs(["map", overlay]);
      expect(loud.stderr).toMatch(/warning: does not state the format of its backing file/);
      expect((await tsimgfs(["-q", "map", overlay])).stderr).toBe("");
      const quiet = await tsimgfs([...args, overlay, copy]);
      expect(quiet.stdout + quiet.stderr).toBe("");
      await expectRefusal([...args, "no-such-image", copy], [/no-such-image: no such file/]);
    },
  );

  itOnce("-q: no progress bar on a terminal", async () => {
    const copy = join(directory, "terminal.raw");
    const onTerminal = async (options: string): Promise<string> => {
      const command = `${process.execPath} ${MAIN} convert ${options} ${image} ${copy}`;
      return (await run("script", ["-qec", command, "/dev/null"])).stdout;
    };
    expect(await onTerminal("-p")).not.toBe("");
    expect(await onTerminal("-p -q")).toBe("");
  });

  it.skipIf(obstacle !== undefined)("of somebody else: whose it is", async () => {
    await mounted([image], { args: ["-o", "allow_other"] }, async ({ mountPoint }) => {
      const result = await attemptTsimgfs(["umount", mountPoint], { identity });
      expect(refusalOf(result)).toMatch(/: is a mount of root; only root can unmount it$/);
    });
  });
});
