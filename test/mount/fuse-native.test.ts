// What is particular to mounts through fuse-native. What both transports do is in the other files: the test project
// mount-native runs them once more.

import { cp, mkdir, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MARK, newMark } from "../support/daemon-processes.ts";
import { withProgram } from "../support/foreground.ts";
import { Mount, makeMountPoint, mounted, refusedMount } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, imageMap, qemuIo } from "../support/qemu.ts";
import { MAIN, REPOSITORY } from "../support/repository.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { refusalOf, tsimgfs } from "../support/tsimgfs.ts";

const NATIVE = ["--transport", "fuse-native"];
const NOTE = /^tsimgfs: --transport fuse-native: one thread, and no fallocate[^\n]*\n$/;

const GIB = 2 ** 30;
const TIB = 2 ** 40;
const PIECE = 65536;
const DISK_SIZE = 16 * TIB;
/** Where an offset that lost bits, or took them for a sign, would point elsewhere. */
const FAR_OFFSETS = [
  2 * GIB - PIECE / 2,
  4 * GIB - PIECE / 2,
  6 * GIB + 12345,
  8 * TIB - PIECE / 2,
  10 * TIB + 3 * GIB,
  DISK_SIZE - PIECE,
];

/** A byte that tells the pieces apart. */
const patternOf = (index: number): number => 0x11 * (index + 1);

describe("a mount through fuse-native", () => {
  let directory = "";
  let sample: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("fuse-native");
    sample = await makeSample(directory, "vm.qcow2");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it("says once what it lacks, when it is made", async () => {
    const { mountPoint, ownDirectory } = await makeMountPoint("directory");
    const mount = new Mount(mountPoint, newMark(), undefined, ownDirectory);
    try {
      const env = { [MARK]: mount.mark };
      const made = await tsimgfs(["mount", ...NATIVE, sample.path, mountPoint], { env });
      expect(made.stderr).toMatch(NOTE);
      expect(made.stdout).toBe("");
      await run("cmp", [mount.device(sample.path), sample.expected]);
      const ended = await tsimgfs(["umount", mountPoint]);
      expect(ended.stderr).toBe("");
    } finally {
      await mount.stop();
    }
  });

  it("writes far beyond 4 GiB where it is told to, and nowhere else", async () => {
    const image = join(directory, "written.qcow2");
    await createImage(image, "qcow2", { size: DISK_SIZE });
    const piece = join(directory, "piece");
    await mounted([image], { args: NATIVE }, async (mount) => {
      for (const [index, offset] of FAR_OFFSETS.entries()) {
        await writeFile(piece, Buffer.alloc(PIECE, patternOf(index)));
        const to = [`of=${mount.device(image)}`, `seek=${offset}`, "oflag=seek_bytes"];
        await run("dd", [`if=${piece}`, ...to, "bs=1M", "conv=notrunc,fsync", "status=none"]);
      }
      expect((await run("stat", ["-c", "%s", mount.device(image)])).stdout.trim()).toBe(
        String(DISK_SIZE),
      );
    });
    await qemuIo(
      image,
      "qcow2",
      FAR_OFFSETS.map((offset, index) => `read -P ${patternOf(index)} ${offset} ${PIECE}`),
    );
    // Nothing else: of each piece, the clusters that it lies in.
    const map = (await imageMap(["-f", "qcow2", image])) as { data: boolean; length: number }[];
    const data = map.filter((range) => range.data).reduce((sum, { length }) => sum + length, 0);
    const clusters = FAR_OFFSETS.map((offset) => (offset % PIECE === 0 ? 1 : 2));
    expect(data).toBe(PIECE * clusters.reduce((sum, count) => sum + count, 0));
  });

  it("reads far beyond 4 GiB what is there, through the page cache and past it", async () => {
    const image = join(directory, "read.qcow2");
    await createImage(image, "qcow2", { size: DISK_SIZE });
    await qemuIo(
      image,
      "qcow2",
      FAR_OFFSETS.map((offset, index) => `write -P ${patternOf(index)} ${offset} ${PIECE}`),
    );
    await mounted([image], { args: [...NATIVE, "-r"] }, async (mount) => {
      const reads = FAR_OFFSETS.flatMap((offset, index) => [
        `read -P ${patternOf(index)} ${offset} ${PIECE}`,
        `read -P 0 ${offset - PIECE} ${PIECE}`,
      ]).flatMap((command) => ["-c", command]);
      for (const cache of ["none", "writeback"]) {
        const args = ["-r", "-f", "raw", "-t", cache, ...reads, mount.device(image)];
        const { stdout, stderr } = await run("qemu-io", args);
        expect(stdout + stderr).not.toMatch(/failed|rror/);
        expect(stdout.match(/^read 65536\/65536 bytes/gm)).toHaveLength(2 * FAR_OFFSETS.length);
      }
    });
  });

  it("refuses to punch holes and to preallocate, and leaves all as it was", async () => {
    await mounted([sample.path], { args: NATIVE }, async (mount) => {
      for (const mode of [["--punch-hole"], ["--zero-range"], []]) {
        const device = mount.device(sample.path);
        const result = await attempt("fallocate", [...mode, "-o", "0", "-l", "1M", device]);
        expect(result.stderr).toMatch(/not supported|unsupported/);
      }
      await run("cmp", [mount.device(sample.path), sample.expected]);
    });
  });

  it("is not made on a file, nor with --threads", async () => {
    const onFile = await refusedMount([sample.path], { args: NATIVE, mountPointKind: "file" });
    expect(onFile).toMatch(/device: is a file: fuse-native mounts on directories only/);
    const threads = await refusedMount([sample.path], { args: [...NATIVE, "--threads", "2"] });
    expect(threads).toMatch(/--threads: contradicts --transport fuse-native/);
  });

  it.runIf(IS_ROOT)("is not made over the root of another file system", async () => {
    const mountPoint = join(directory, "other");
    await mkdir(mountPoint);
    await run("mount", ["-t", "tmpfs", "none", mountPoint]);
    try {
      const line = await refusedMount([sample.path], { args: NATIVE, mountPoint });
      expect(line).toMatch(/other: is the root of another file system/);
    } finally {
      await run("umount", [mountPoint]);
    }
  });

  it("ends at Ctrl-C in the foreground", async () => {
    const { mountPoint, ownDirectory } = await makeMountPoint("directory");
    const mount = new Mount(mountPoint, newMark(), undefined, ownDirectory);
    try {
      await withProgram(
        process.execPath,
        [MAIN, "mount", "-f", ...NATIVE, sample.path, mountPoint],
        async (program) => {
          await until(`mounted: ${program.output}`, () => NOTE.test(program.output));
          await run("cmp", [mount.device(sample.path), sample.expected]);
          program.kill("SIGINT");
          expect(await program.end()).toBe(0);
          expect(program.output).toMatch(NOTE);
        },
        { [MARK]: mount.mark },
      );
      expect(mount.isMounted()).toBe(false);
    } finally {
      await mount.stop();
    }
  });

  it("is refused, with what to do, where the package is not installed", async () => {
    const program = join(directory, "program");
    await cp(join(REPOSITORY, "dist"), join(program, "dist"), { recursive: true });
    await cp(join(REPOSITORY, "package.json"), join(program, "package.json"));
    await mkdir(join(program, "node_modules"));
    await symlink(join(REPOSITORY, "node_modules/koffi"), join(program, "node_modules/koffi"));
    const { mountPoint, ownDirectory } = await makeMountPoint("directory");
    try {
      const main = join(program, "dist/cli/main.js");
      const args = [main, "mount", ...NATIVE, sample.path, mountPoint];
      const line = refusalOf(await attempt(process.execPath, args));
      expect(line).toMatch(/^tsimgfs: --transport fuse-native: .*not installed; npm install/);
    } finally {
      await rm(ownDirectory, { recursive: true });
    }
  });
});
