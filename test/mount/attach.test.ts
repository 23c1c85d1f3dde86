// attach and detach as root: block devices, partitions and file systems of an image, and that nothing is left of them.

import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, realpathSync } from "node:fs";
import {
  copyFile,
  mkdir,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { constants } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { MARK, markedProcesses, newMark, runsNode } from "../support/daemon-processes.ts";
import { withProgram } from "../support/foreground.ts";
import { asArray, asRecord } from "../support/json.ts";
import { withLoop } from "../support/loop.ts";
import { mountAt, mountTable } from "../support/mount-table.ts";
import { type Mount, mounted } from "../support/mounted.ts";
import { IS_ROOT, ORDINARY_USER, ordinaryUserObstacle } from "../support/ordinary-user.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, type RunResult, run, runJson, until } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, refusalOf, tsimgfs } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
const random = new Random("attach-interrupted");

interface AttachedDevice {
  readonly device: string;
  readonly partition: unknown;
  readonly size: unknown;
  readonly type: unknown;
  readonly label: unknown;
}

describe.skipIf(!IS_ROOT)("attach (needs root)", () => {
  let directory = "";
  let image = "";
  let target = "";

  beforeAll(async () => {
    directory = await makeScratch("attach");
    image = join(directory, "disk.qcow2");
    target = join(directory, "target");
    await mkdir(target);
  });
  afterEach(async () => {
    await attemptTsimgfs(["detach", image]);
    await expectNothingLeft();
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** The private directory of the image. */
  function place(): string {
    const path = join(realpathSync(directory), basename(image));
    const hash = createHash("sha256").update(path).digest("hex");
    return `/run/tsimgfs/${hash.slice(0, 16)}`;
  }

  async function loops(): Promise<string[]> {
    const listing = ["--list", "--raw", "--noheadings", "-O", "NAME,BACK-FILE"];
    const { stdout } = await run("losetup", listing);
    const lines = stdout.split("\n").filter((line) => line.includes(place()));
    return lines.map((line) => line.split(" ")[0] ?? "");
  }

  async function expectNothingLeft(): Promise<void> {
    expect(mountAt(target)).toBeUndefined();
    expect(mountTable().filter(({ source }) => source === image)).toEqual([]);
    expect(await loops()).toEqual([]);
    expect(existsSync(place())).toBe(false);
    if (existsSync(image)) await expectClean(image);
  }

  async function makeDisk(size = 128 * MIB): Promise<void> {
    await rm(image, { force: true });
    await createImage(image, "qcow2", { size });
  }

  /** A copy of a disk that `make` has made once. */
  async function copyDisk(name: string, make: (mount: Mount) => Promise<unknown>): Promise<void> {
    const template = join(directory, `${name}.template`);
    if (!existsSync(template)) {
      await makeDisk();
      await mounted([image], {}, make);
      await copyFile(image, template);
    }
    await copyFile(template, image);
  }

  /** Two file systems, and a partition without one. */
  const makePartitionedDisk = (): Promise<void> =>
    copyDisk("partitions", async (mount) => {
      const script = "label: gpt\nsize=32M\nsize=32M\n,,\n";
      await run("sfdisk", ["--quiet", mount.device(image)], { input: script });
      const partition = (number: number): string =>
        join(mount.mountPoint, "disk.partitions", `${number}.raw`);
      await run("mkfs.ext4", ["-q", "-F", "-L", "first fs", partition(1)]);
      await run("mkfs.vfat", ["-n", "SECOND", partition(2)]);
    });

  const makeFileSystem = (): Promise<void> =>
    copyDisk("file-system", (mount) => run("mkfs.ext4", ["-q", "-F", mount.device(image)]));

  async function attach(...args: readonly string[]): Promise<AttachedDevice[]> {
    const { stdout } = await tsimgfs(["attach", "--output", "json", ...args, image]);
    return asArray(asRecord(JSON.parse(stdout))["devices"]).map((value) => {
      const { device, partition, size, type, label } = asRecord(value);
      return { device: String(device), partition, size, type, label };
    });
  }

  it("makes the disk a loop device with direct I/O, which detach removes", async () => {
    await makeDisk();
    const [disk, ...others] = await attach();
    expect(others).toEqual([]);
    expect(disk).toMatchObject({ size: 128 * MIB });
    const device = disk?.device ?? "";
    const listed = await runJson("losetup", ["--list", "--json", "-O", "NAME,DIO,RO", device]);
    expect(listed).toMatchObject({ loopdevices: [{ name: device, dio: true, ro: false }] });
    const noise = join(directory, "noise");
    await writeFile(noise, new Random("attach").bytes(3 * MIB));
    await run("dd", [`if=${noise}`, `of=${device}`, "bs=1M", "seek=5", "status=none"]);
    await tsimgfs(["detach", device]);
    await expectNothingLeft();
    await mounted([image], { args: ["-r"] }, (mount) =>
      run("cmp", ["-i", `${5 * MIB}:0`, "-n", String(3 * MIB), mount.device(image), noise]),
    );
  });

  it("makes a device for each partition, and says what is there", async () => {
    await makePartitionedDisk();
    const devices = await attach("--partitions");
    expect(devices).toMatchObject([
      { partition: undefined, size: 128 * MIB, type: "gpt" },
      { partition: 1, size: 32 * MIB, type: "ext4", label: "first fs" },
      { partition: 2, size: 32 * MIB, type: "vfat", label: "SECOND" },
      { partition: 3 },
    ]);
    await run("fsck.ext4", ["-f", "-n", devices[1]?.device ?? ""]);
    await run("fsck.vfat", ["-n", devices[2]?.device ?? ""]);
    await run("mkfs.ext4", ["-q", devices[3]?.device ?? ""]);
    const { stderr } = await attemptTsimgfs(["attach", image]);
    expect(stderr).toMatch(/^tsimgfs: .*disk\.qcow2: is attached already, at \/dev\/loop\d+;.*\n$/);
    await tsimgfs(["detach", devices[2]?.device ?? ""]);
    await expectNothingLeft();
  });

  it("gives devices the sectors that the table counts in", async () => {
    const raw = join(directory, "4k.img");
    await writeFile(raw, "");
    await truncate(raw, 64 * MIB);
    await run("fdisk", ["-b", "4096", raw], { input: "g\nn\n1\n\n+8M\nn\n5\n\n\nw\n" });
    await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, image]);
    const devices = await attach("--partitions");
    expect(devices).toMatchObject([{ size: 64 * MIB }, { partition: 1, size: 8 * MIB }, {}]);
    for (const { device } of devices) {
      expect((await run("blockdev", ["--getss", device])).stdout).toBe("4096\n");
    }
    await tsimgfs(["detach", image]);
  });

  it("prints a table", async () => {
    await makePartitionedDisk();
    const { stdout } = await tsimgfs(["attach", "--partitions", image]);
    const lines = stdout.trimEnd().split("\n");
    expect(lines[0]).toMatch(/^DEVICE +PARTITION +SIZE +TYPE +LABEL$/);
    expect(lines[2]).toMatch(/^\/dev\/loop\S+ +1 +32 MiB +ext4 +first fs$/);
    expect(lines).toHaveLength(5);
  });

  it("says what is in partitions that have no device of their own", async () => {
    await makePartitionedDisk();
    expect(await attach()).toMatchObject([
      { type: "gpt" },
      { partition: 1, size: 32 * MIB, type: "ext4", label: "first fs" },
      { partition: 2, size: 32 * MIB, type: "vfat", label: "SECOND" },
      { partition: 3, type: undefined },
    ]);
    await tsimgfs(["detach", image]);
  });

  it("mounts the only file system, or the one of a partition, and unmounts it", async () => {
    await makeFileSystem();
    await attach("--mount", target);
    await writeFile(join(target, "file"), "in the image\n");
    await tsimgfs(["detach", image]);
    await expectNothingLeft();
    await mounted([image], { args: ["-r"] }, async (mount) => {
      const { stdout } = await run("debugfs", ["-R", "cat /file", mount.device(image)]);
      expect(stdout).toBe("in the image\n");
    });
    await makePartitionedDisk();
    await attach("--mount", target, "--partition", "1");
    expect(mountAt(target)?.type).toBe("ext4");
    await tsimgfs(["detach", image]);
  });

  it("writes nothing with -r", async () => {
    await makeFileSystem();
    const before = await readFile(image);
    await attach("-r", "--mount", target);
    expect((await attempt("touch", [join(target, "file")])).stderr).toMatch(/Read-only/);
    await tsimgfs(["detach", image]);
    expect((await readFile(image)).equals(before)).toBe(true);
  });

  const FAILURES: readonly (readonly [string, readonly string[], RegExp])[] = [
    ["no such image", ["/nonexistent/x.qcow2"], /no such file/],
    ["no directory to mount on", ["--mount", "/nonexistent"], /nonexistent: no such directory/],
    ["a file to mount on", ["--mount", "/etc/passwd"], /is not a directory/],
    ["--partition alone", ["--partition", "1"], /needs --mount/],
    ["two file systems", ["--mount", "TARGET"], /partitions 1, 2 have file systems/],
    ["no such partition", ["--mount", "TARGET", "--partition", "9"], /has no partition 9/],
    ["no file system there", ["--mount", "TARGET", "--partition", "3"], /target: mount: /],
  ];

  it.each(FAILURES)("leaves nothing behind after a failure: %s", async (_, args, message) => {
    await makePartitionedDisk();
    const words = args.map((word) => (word === "TARGET" ? target : word));
    const images = words.some((word) => word.endsWith(".qcow2")) ? [] : [image];
    await expectRefusal(["attach", ...words, ...images], [message]);
    await expectNothingLeft();
  });

  it("keeps everything while the file system is in use, and can be asked again", async () => {
    await makeFileSystem();
    await attach("--mount", target);
    const user = spawn("sleep", ["60"], { cwd: target });
    try {
      await until("it runs", () => user.pid !== undefined);
      const inUse = `target: is in use by sleep (pid ${user.pid}); end that, and detach again`;
      await expectRefusal(["detach", image], [inUse]);
      expect(mountAt(target)?.type).toBe("ext4");
      expect(await loops()).toHaveLength(1);
    } finally {
      await ended(user, "SIGKILL");
    }
    await tsimgfs(["detach", image]);
    await expectNothingLeft();
    const again = await tsimgfs(["detach", image]);
    expect(again.stderr).toMatch(/is not attached/);
  });

  it("leaves what others have mounted on top of its file system, and says so", async () => {
    await makeFileSystem();
    await attach("--mount", target);
    await run("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", target]);
    try {
      await expectRefusal(["detach", image], [/target: something else is mounted on top of it;/]);
      expect(mountAt(target)?.type).toBe("tmpfs");
      expect(await loops()).toHaveLength(1);
    } finally {
      if (mountAt(target)?.type === "tmpfs") await run("umount", [target]);
    }
    await tsimgfs(["detach", image]);
  });

  it("can be asked by several at once", async () => {
    await makePartitionedDisk();
    await attach("--partitions", "--mount", target, "--partition", "1");
    const [device = ""] = await loops();
    const asked = [image, device, image].map((subject) => attemptTsimgfs(["detach", subject]));
    for (const { status, stderr } of await Promise.all(asked)) {
      expect({ status, stderr }).toMatchObject({ status: 0 });
    }
    await expectNothingLeft();
  });

  it("takes an image that is a block device itself", async () => {
    await makeDisk();
    // With room for what is written to it.
    await truncate(image, 4 * MIB);
    await withLoop(image, [], async (device) => {
      const { stdout } = await tsimgfs(["attach", "--output", "json", device]);
      const [disk] = asArray(asRecord(JSON.parse(stdout))["devices"]).map(asRecord);
      expect(disk).toMatchObject({ size: 128 * MIB });
      await tsimgfs(["detach", device]);
      expect((await attempt("losetup", [String(disk?.["device"])])).status).not.toBe(0);
    });
  });

  it.each(["image", "device"])(
    "takes down what a daemon that was told to end still serves: %s",
    async (subject) => {
      await makeDisk();
      const mark = newMark();
      await tsimgfs(["attach", image], { env: { [MARK]: mark } });
      const [device = ""] = await loops();
      for (const pid of markedProcesses(mark).filter(runsNode)) process.kill(pid, "SIGTERM");
      await until("it is out of sight", () => mountAt(place()) === undefined);
      await expectRefusal(["attach", image], [/is attached already, at \/dev\/loop/]);
      await tsimgfs(["detach", subject === "image" ? image : device]);
      expect((await attempt("losetup", [device])).status).not.toBe(0);
      await until("it is gone", () => markedProcesses(mark).length === 0);
    },
  );

  it("takes down the rest where somebody has removed a device in use", async () => {
    await makePartitionedDisk();
    const devices = await attach("--partitions", "--mount", target, "--partition", "1");
    await run("losetup", ["--detach", devices[1]?.device ?? ""]);
    await tsimgfs(["detach", image]);
    await expectNothingLeft();
  });

  it("knows what was attached by a link, also when the image is deleted", async () => {
    await makeDisk();
    const link = join(directory, "link.qcow2");
    await symlink("disk.qcow2", link);
    await tsimgfs(["attach", link]);
    await rm(image);
    expect((await tsimgfs(["detach", link])).stderr).toBe("");
    await expectNothingLeft();
  });

  it("is told of by another name of the image, and does not say that nothing is attached", async () => {
    await makeDisk();
    const overlay = join(directory, "overlay.qcow2");
    const moved = join(directory, "moved.qcow2");
    await createImage(overlay, "qcow2", { backing: { file: image, format: "qcow2" } });
    await tsimgfs(["attach", overlay]);
    expect((await tsimgfs(["detach", image])).stderr).toMatch(/disk\.qcow2: is not attached\n$/);
    await rename(overlay, moved);
    const stderr = refusalOf(await attemptTsimgfs(["detach", moved]));
    const [, device = ""] =
      /moved\.qcow2: is in use by what was attached as \S+\/overlay\.qcow2; tsimgfs detach (\S+) ends that$/.exec(
        stderr,
      ) ?? [];
    expect(device).toMatch(/^\/dev\/loop\d+$/);
    await tsimgfs(["detach", device]);
    expect((await tsimgfs(["detach", moved])).stderr).toMatch(/is not attached/);
    await expectNothingLeft();
  });

  it("says where a partition table is damaged, and what has no file system", async () => {
    await makePartitionedDisk();
    const wipe = (offset: string): Promise<RunResult> =>
      qemuIo(image, "qcow2", [`write -z ${offset} 512`]);
    await wipe("512");
    const copy = /is damaged; the partitions are those of the copy/;
    expect((await tsimgfs(["attach", image])).stderr).toMatch(copy);
    await tsimgfs(["detach", image]);
    await wipe(String(128 * MIB - 512));
    const damaged = /disk\.qcow2: .*its partition table, a GPT, is damaged, as is the copy of it/;
    expect((await tsimgfs(["attach", image])).stderr).toMatch(damaged);
    await tsimgfs(["detach", image]);
    for (const more of [[], ["--partition", "1"]]) {
      await expectRefusal(["attach", "--mount", target, ...more, image], [damaged]);
    }
    await makeDisk();
    await expectRefusal(
      ["attach", "--mount", target, image],
      [/has no file system to mount: the disk has no partitions, and blkid finds nothing on it$/],
    );
  });

  it("says what can be done for a file system that cannot be mounted read-only", async () => {
    await makeFileSystem();
    await attach("--mount", target);
    await writeFile(join(target, "file"), "");
    await run("sync", ["-f", target]);
    const copy = join(directory, "copy.qcow2");
    await copyFile(image, copy);
    await tsimgfs(["detach", image]);
    const relative = join("..", basename(directory), "target");
    const reason = `tsimgfs: ${target}: mount: cannot mount /dev/loop`;
    const advice =
      /read-only\. Its journal may have to be replayed first: attach it once without -r$/;
    await expectRefusal(["attach", "-r", "--mount", relative, copy], [reason, advice], {
      cwd: directory,
    });
    await tsimgfs(["attach", "--mount", relative, copy], { cwd: directory });
    await tsimgfs(["detach", copy]);
    await tsimgfs(["attach", "-r", "--mount", relative, copy], { cwd: directory });
    await tsimgfs(["detach", copy]);
  });

  it("cleans up after a daemon that was killed", async () => {
    await makeFileSystem();
    const mark = newMark();
    await tsimgfs(["attach", "--mount", target, image], { env: { [MARK]: mark } });
    const [device = ""] = await loops();
    for (const pid of markedProcesses(mark).filter(runsNode)) process.kill(pid, "SIGKILL");
    await until("it is gone", () => markedProcesses(mark).length === 0);
    await tsimgfs(["detach", device]);
  });

  it.each(
    byScale(
      [
        ["SIGINT", 150],
        ["SIGTERM", 400],
        ["SIGHUP", 600],
      ],
      [150, 300, 450, 600, 750].flatMap((delayMs) =>
        (["SIGINT", "SIGTERM", "SIGHUP"] as const).map((signal) => [signal, delayMs] as const),
      ),
    ),
  )("ends by itself after %s, %i ms after its start", async (signal, delayMs) => {
    await makePartitionedDisk();
    const args = [MAIN, "attach", "--partitions", "--mount", target, "--partition", "1", image];
    await withProgram("setsid", [process.execPath, ...args], async (command) => {
      await sleep(delayMs);
      // From a terminal all programs that it has started hear it, and of the impatient, twice.
      for (const pauseMs of [0, random.below(100)]) {
        await sleep(pauseMs);
        if (command.isRunning) process.kill(-command.pid, signal);
      }
      const status = await command.end();
      // It may have been done before.
      if (status === 0) await tsimgfs(["detach", image]);
      else {
        expect([signal, 128 + constants.signals[signal]]).toContain(status);
        expect(command.output).toBe("");
        await expectNothingLeft();
      }
    });
  });

  it("tells nothing of a signal that its background process has heard as well", async () => {
    await makeDisk();
    const mark = newMark();
    await withProgram(
      process.execPath,
      [MAIN, "attach", image],
      async (command) => {
        await until("a daemon is there", () =>
          markedProcesses(mark).some((pid) => pid !== command.pid),
        );
        for (const pid of [command.pid, ...markedProcesses(mark)]) process.kill(pid, "SIGINT");
        expect(await command.end()).toBe(130);
        expect(command.output).toBe("");
      },
      { [MARK]: mark },
    );
    await expectNothingLeft();
  });

  it("leaves what detach can take down, wherever it is killed", async () => {
    await makePartitionedDisk();
    for (const delayMs of byScale(
      [150, 300, 450, 650],
      Array.from({ length: 40 }, (_, n) => n * 25),
    )) {
      const mark = newMark();
      const args = [MAIN, "attach", "--partitions", "--mount", target, "--partition", "1", image];
      const child = spawn(process.execPath, args, { env: { ...process.env, [MARK]: mark } });
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      await ended(child, "SIGKILL");
      await until("all is down", async () => {
        await tsimgfs(["detach", image]);
        // A daemon that nobody waits for any more ends by itself.
        return markedProcesses(mark).length === 0 && !existsSync(place());
      });
      await expectNothingLeft();
    }
  });

  it("refuses loop devices of others, and what is none", async () => {
    await makeDisk();
    const plain = join(directory, "plain.img");
    await writeFile(plain, Buffer.alloc(MIB));
    await withLoop(plain, [], async (device) => {
      await expectRefusal(
        ["detach", device],
        [/is not of tsimgfs attach, but a device on .*plain/],
      );
    });
    expect((await tsimgfs(["detach", plain])).stderr).toMatch(/plain\.img: is not attached/);
  });

  it.skipIf(ordinaryUserObstacle() !== undefined)(
    "says what an ordinary user can do instead",
    async () => {
      await makeDisk();
      const options = { identity: ORDINARY_USER };
      for (const command of ["attach", "detach"]) {
        await expectRefusal([command, image], [/need root; .*NAME\.partitions/], options);
      }
    },
  );
});

/** Sends a signal; the exit status when the process has ended. */
function ended(child: ChildProcess, signal: NodeJS.Signals): Promise<number | undefined> {
  return new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) resolve(child.exitCode ?? undefined);
    child.once("exit", (code) => resolve(code ?? undefined));
    child.kill(signal);
  });
}
