// The files that `tsimgfs create` makes and overwrites: locks, failures half-way, names, devices, raw images.

import { mkdir, readdir, readFile, readlink, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { withProgram } from "../support/foreground.ts";
import { asRecord } from "../support/json.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, imageInfo, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, type RunResult, run, until } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;

let directory = "";
const at = (name: string): string => join(directory, name);

beforeAll(async () => {
  directory = await makeScratch("create-files");
});

afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

const infoOf = async (path: string): Promise<Readonly<Record<string, unknown>>> =>
  asRecord(await imageInfo([path]));

/** Runs create with a limit on the length of files, in KiB; the signal that comes with it ignored. */
function attemptLimited(limitKib: number, args: readonly string[]): Promise<RunResult> {
  const script = `trap "" XFSZ; ulimit -f ${limitKib}; exec "$@"`;
  return attempt("bash", ["-c", script, "bash", process.execPath, MAIN, "create", ...args]);
}

describe("raw images that create makes", () => {
  it.each(["off", "falloc", "full"])("have the size, with preallocation %s", async (mode) => {
    const path = at(`${mode}.raw`);
    const args = ["-f", "raw", "-o", `preallocation=${mode}`, path, "3000000"];
    const { stdout } = await tsimgfs(["create", ...args]);
    const reference = await run("qemu-img", ["create", ...args.slice(0, -2), path, "3000000"]);
    expect(stdout).toBe(reference.stdout);
    await rm(path);
    await tsimgfs(["create", "-q", ...args]);
    const { size, blocks } = await stat(path);
    expect(size).toBe(3_000_320);
    if (mode === "off") expect(blocks).toBe(0);
    else expect(blocks * 512).toBeGreaterThanOrEqual(size);
    await expectContent(path, Buffer.alloc(size));
  });

  it("lose what was there before", async () => {
    const path = at("old.raw");
    await writeFile(path, new Random("old").bytes(100_000));
    await tsimgfs(["create", "-q", path, "64k"]);
    await expectContent(path, Buffer.alloc(65536));
  });
});

describe("an image that is there", () => {
  it("is overwritten, whatever it was", async () => {
    const path = at("again.qcow2");
    await writeFile(path, new Random("again").bytes(3 * MIB));
    for (const options of ["cluster_size=512", "preallocation=full", "compat=0.10"]) {
      await tsimgfs(["create", "-q", "-f", "qcow2", "-o", options, path, "1M"]);
      await run("qemu-img", ["check", "-q", path]);
      await run("cmp", ["-n", String(MIB), await converted(path), "/dev/zero"]);
      await qemuIo(path, "qcow2", ["write -q -P 9 0 1M"]);
    }
  });

  it.each([
    ["a writer", ["-f", "qcow2"]],
    ["a reader", ["-r", "-f", "qcow2"]],
  ])("stays as it is while QEMU is %s", async (_what, flags) => {
    const path = at("busy.qcow2");
    await createImage(path, "qcow2", { size: MIB });
    await qemuIo(path, "qcow2", ["write -q -P 3 0 64k"]);
    const before = await readFile(path);
    await withProgram("qemu-io", [...flags, path], async (program) => {
      await untilOpen(program.pid, path);
      for (const format of ["qcow2", "raw"]) {
        const line = refusalOf(await attemptTsimgfs(["create", "-f", format, path, "2M"]));
        expect(line).toMatch(
          new RegExp(`busy\\.qcow2: is in use by qemu-io \\(pid ${program.pid}\\)`),
        );
        await expectContent(path, before);
      }
      const data = ["-f", "qcow2", "-o", `data_file=${path}`, at("with-busy-data.qcow2"), "2M"];
      refusalOf(await attemptTsimgfs(["create", ...data]));
      await expectContent(path, before);
      expect(await readdir(directory)).not.toContain("with-busy-data.qcow2");
    });
  });

  it("can be made the backing file of a new one while QEMU writes to it", async () => {
    const path = at("running.qcow2");
    await createImage(path, "qcow2", { size: 3 * MIB });
    await withProgram("qemu-io", ["-f", "qcow2", path], async (program) => {
      await untilOpen(program.pid, path);
      const args = ["create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2"];
      await run("qemu-img", [...args, at("theirs.qcow2")]);
      await tsimgfs([...args, at("ours.qcow2")]);
    });
    expect(await infoOf(at("ours.qcow2"))).toMatchObject({ "virtual-size": 3 * MIB });
  });
});

describe("names of other files", () => {
  it("start at the directory of the new image", async () => {
    await mkdir(at("sub"));
    await createImage(at("sub/base.raw"), "raw", { size: MIB });
    const args = ["-b", "base.raw", "-F", "raw", "-o", "data_file=data.raw", "sub/over.qcow2"];
    await tsimgfs(["create", "-q", "-f", "qcow2", ...args], { cwd: directory });
    expect((await readdir(at("sub"))).sort()).toEqual(["base.raw", "data.raw", "over.qcow2"]);
    const info = await infoOf(at("sub/over.qcow2"));
    expect(info["backing-filename"]).toBe("base.raw");
    await tsimgfs(["map", at("sub/over.qcow2")]);
  });

  it("are stored as they are, of any length that fits", async () => {
    for (const [length, cluster] of [
      [376, 512],
      [1023, 65536],
    ]) {
      const name = "ä".padEnd(Number(length) - 1, "b");
      const path = at("named.qcow2");
      const options = `cluster_size=${cluster}`;
      const args = ["-u", "-b", name, "-F", "raw", "-o", options, path, "1M"];
      await tsimgfs(["create", "-q", "-f", "qcow2", ...args]);
      expect((await infoOf(path))["backing-filename"]).toBe(name);
      await run("qemu-img", ["rebase", "-q", "-u", "-b", "", path]);
      await run("qemu-img", ["check", "-q", path]);
    }
  });

  it("are not looked at with -u", async () => {
    const path = at("unseen.qcow2");
    const args = ["-u", "-b", "nbd://nowhere/x", "-F", "raw", path, "1M"];
    expect((await tsimgfs(["create", "-q", "-f", "qcow2", ...args])).stderr).toBe("");
    expect(await infoOf(path)).toMatchObject({
      "backing-filename": "nbd://nowhere/x",
      "backing-filename-format": "raw",
    });
  });

  it("come with a warning where there is no such file", async () => {
    const path = at("over-nothing.qcow2");
    const args = ["-f", "qcow2", "-u", "-b", "no\nfile", "-F", "raw", path, "1M"];
    expect((await tsimgfs(["create", ...args])).stderr).toBe(
      `tsimgfs: ${path}: warning: its backing file ${at("no")}\\x0afile does not exist\n`,
    );
    expect(await tsimgfs(["create", "-q", ...args])).toMatchObject({ stdout: "", stderr: "" });
    expect((await infoOf(path))["backing-filename"]).toBe("no\nfile");
  });

  it("come with a warning where a raw backing file looks like something else", async () => {
    await createImage(at("inner.qcow2"), "qcow2", { size: MIB });
    const args = ["-b", at("inner.qcow2"), "-F", "raw", at("outer.qcow2")];
    const { stderr } = await tsimgfs(["create", "-f", "qcow2", ...args]);
    expect(stderr).toMatch(/^tsimgfs: [^\n]*inner\.qcow2: warning: is used as raw, [^\n]*qcow2\n$/);
  });

  it("may be those of symbolic links, which stay links", async () => {
    await createImage(at("target.qcow2"), "qcow2", { size: MIB });
    await run("ln", ["-s", "target.qcow2", at("link.qcow2")]);
    await run("ln", ["-s", "later.qcow2", at("dangling.qcow2")]);
    for (const [link, target] of [
      ["link.qcow2", "target.qcow2"],
      ["dangling.qcow2", "later.qcow2"],
    ]) {
      await tsimgfs(["create", "-q", "-f", "qcow2", at(link ?? ""), "2M"]);
      expect(await readlink(at(link ?? ""))).toBe(target);
      expect((await infoOf(at(target ?? "")))["virtual-size"]).toBe(2 * MIB);
    }
  });
});

describe("external data files", () => {
  it.each(["off", "metadata", "falloc", "full"])(
    "are as long as the disk, with preallocation %s",
    async (mode) => {
      const data = at(`data-${mode}.raw`);
      await writeFile(data, new Random("data").bytes(100_000));
      // Not a whole number of clusters.
      const options = `data_file=${data},data_file_raw=on,preallocation=${mode}`;
      const path = at(`data-${mode}.qcow2`);
      await tsimgfs(["create", "-q", "-f", "qcow2", "-o", options, path, "3000320"]);
      await expectContent(data, Buffer.alloc(3_000_320));
      const allocated = (await stat(data)).blocks * 512;
      if (mode === "falloc" || mode === "full") expect(allocated).toBeGreaterThanOrEqual(3_000_320);
      else expect(allocated).toBe(0);
      await qemuIo(path, "qcow2", ["write -q -P 5 0 100k", "write -q -P 6 2999808 512"]);
      await run("qemu-img", ["check", "-q", path]);
      await run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "raw", path, data]);
    },
  );
});

describe("a create that fails", () => {
  it("leaves no new file, and an old one as it was, when the host has no such files", async () => {
    const old = at("kept.qcow2");
    await createImage(old, "qcow2", { size: MIB });
    const before = await readFile(old);
    const full = ["-f", "qcow2", "-o", "preallocation=full"];
    for (const args of [
      [...full, old, "4M"],
      [...full, at("never.qcow2"), "4M"],
      ["-f", "raw", old, "4M"],
      ["-f", "raw", at("never.qcow2"), "4M"],
      ["-f", "qcow2", "-o", `data_file=${at("never.raw")}`, old, "4M"],
    ]) {
      const line = refusalOf(await attemptLimited(2048, ["-q", ...args]));
      expect(line).toMatch(/(kept|never)\.\w+: the host's file system has no files of \d+ bytes$/);
      await expectContent(old, before);
      expect((await readdir(directory)).filter((name) => name.startsWith("never"))).toEqual([]);
    }
  });

  it.skipIf(!IS_ROOT)("leaves no new file when the host has no space (needs root)", async () => {
    const mountpoint = at("small");
    await mkdir(mountpoint);
    await run("mount", ["-t", "tmpfs", "-o", "size=1m", "none", mountpoint]);
    try {
      const old = join(mountpoint, "old.qcow2");
      await createImage(old, "qcow2", { size: MIB });
      for (const mode of ["falloc", "full"]) {
        const options = ["-o", `preallocation=${mode}`];
        const path = join(mountpoint, "new.qcow2");
        for (const args of [
          ["-f", "qcow2", ...options, path, "2M"],
          ["-f", "raw", ...options, path, "2M"],
          ["-f", "qcow2", ...options, "-o", `data_file=${path}.data`, path, "2M"],
          ["-f", "qcow2", ...options, old, "2M"],
        ]) {
          expect(refusalOf(await attemptTsimgfs(["create", "-q", ...args]))).toMatch(
            /ENOSPC, no space is left on its file system$/,
          );
          expect(await readdir(mountpoint)).toEqual(["old.qcow2"]);
        }
        // It had to be given up for the new one; it is no image any more.
        expect((await stat(old)).size).toBe(0);
      }
    } finally {
      await run("umount", [mountpoint]);
    }
  });
});

describe.skipIf(!IS_ROOT)("images on block devices (needs root)", () => {
  it("are made within the device, and read as zeros", async () => {
    const file = at("device.img");
    await writeFile(file, new Random("device").bytes(8 * MIB));
    const { stdout } = await run("losetup", ["--find", "--show", file]);
    const device = stdout.trim();
    try {
      for (const mode of ["off", "metadata", "falloc", "full"]) {
        const args = ["-q", "-f", "qcow2", "-o", `preallocation=${mode}`, device, "4M"];
        await tsimgfs(["create", ...args]);
        await run("qemu-img", ["check", "-q", "-f", "qcow2", device]);
        expect(await imageMap(["-f", "qcow2", device])).toHaveLength(1);
        await run("cmp", ["-n", String(4 * MIB), await converted(device), "/dev/zero"]);
        await qemuIo(device, "qcow2", ["write -q -P 7 0 4M"]);
      }
      const whole = ["-q", "-f", "qcow2", "-o", "preallocation=metadata", device, "8M"];
      expect(refusalOf(await attemptTsimgfs(["create", ...whole]))).toMatch(
        /the image needs \d+ bytes, the device has 8388608$/,
      );
      await run("qemu-img", ["check", "-q", "-f", "qcow2", device]);
      await tsimgfs(["create", "-q", device, "8M"]);
      expect(await infoOf(device)).toMatchObject({ format: "raw", "virtual-size": 8 * MIB });
    } finally {
      await run("losetup", ["--detach", device]);
    }
  });
});

/** `toEqual` would take seconds for a megabyte. */
async function expectContent(path: string, wanted: Buffer): Promise<void> {
  expect((await readFile(path)).equals(wanted), `${path} has the contents that it should`).toBe(
    true,
  );
}

/** A raw copy of the disk of a qcow2 image. */
async function converted(path: string): Promise<string> {
  const copy = at("converted.raw");
  await rm(copy, { force: true });
  await run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", path, copy]);
  return copy;
}

/** Waits until a program holds locks on an image. */
async function untilOpen(pid: number, path: string): Promise<void> {
  const { ino } = await stat(path);
  await until(`process ${pid} has locked ${path}`, async () => {
    const locks = await readFile("/proc/locks", "latin1");
    return locks.includes(`:${ino} 100 `) || locks.includes(`:${ino} 201 `);
  });
}
