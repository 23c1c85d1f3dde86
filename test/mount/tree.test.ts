// The tree of a mount: its names and sizes, safe names for snapshots, and that nothing in it can be changed.

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Mount, mounted } from "../support/mounted.ts";
import { convertToRaw } from "../support/qemu.ts";
import { attempt, run } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport } from "../support/transport.ts";

/** Names below a directory, by find(1), separated by NUL so that no name can pretend to be two. */
async function namesBelow(directory: string): Promise<string[]> {
  const { stdout } = await run("find", [directory, "-mindepth", "1", "-printf", "%P\\0"]);
  return stdout
    .split("\0")
    .filter((name) => name !== "")
    .sort();
}

describe("the tree of a mount", () => {
  let directory = "";
  let plain: SampleImage;
  let withSnapshots: SampleImage;
  /** Files whose contents are those of the snapshots, in the order of their ids. */
  const snapshotContents: string[] = [];

  const SNAPSHOTS = ["a/b", "same", "same", "new\nline", "..", "é ü", ""] as const;

  beforeAll(async () => {
    directory = await makeScratch("tree");
    plain = await makeSample(directory, "data.img", { format: "raw" });
    withSnapshots = await makeSample(directory, "vm.qcow2");
    for (const [index, name] of SNAPSHOTS.entries()) {
      const { path } = withSnapshots;
      await run("qemu-io", ["-f", "qcow2", "-c", `write -P ${index + 1} ${index * 512} 512`, path]);
      await run("qemu-img", ["snapshot", "-c", name, path]);
      const content = join(directory, `content-${index + 1}`);
      await convertToRaw(path, "qcow2", content, ["-l", `snapshot.id=${index + 1}`]);
      snapshotContents.push(content);
    }
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it("has a device, statistics, snapshots and partitions, named for the image", async () => {
    await mounted([plain.path, withSnapshots.path], {}, async (mount) => {
      const names = await namesBelow(mount.mountPoint);
      expect(names).toEqual(
        expect.arrayContaining([
          "data.partitions",
          "data.raw",
          "data.stats.json",
          "vm.raw",
          "vm.snapshots",
          "vm.stats.json",
          "metrics",
        ]),
      );
      const types = await run("stat", [
        "--format=%F",
        ...["data.raw", "vm.stats.json", "vm.snapshots"].map((name) =>
          join(mount.mountPoint, name),
        ),
      ]);
      expect(types.stdout).toBe("regular file\nregular file\ndirectory\n");
    });
  });

  it("keeps a name whose extension is not that of an image format", async () => {
    const odd = await makeSample(directory, "disk.v1.bin", { format: "raw" });
    await mounted([odd.path], { args: ["--format", "raw"] }, async (mount) => {
      await run("cmp", [join(mount.mountPoint, "disk.v1.bin.raw"), odd.expected]);
    });
  });

  it("has the size of the disk, and claims the blocks of the image file", async () => {
    await mounted([withSnapshots.path], {}, async (mount) => {
      const device = mount.device(withSnapshots.path);
      await run("sync", [withSnapshots.path]); // Allocation on the host is final then.
      const { stdout } = await run("stat", ["--format=%s %b %h", device, withSnapshots.path]);
      const [size, blocks, links, , imageBlocks] = stdout.trim().split(/\s+/).map(Number);
      const expected = await run("stat", ["--format=%s", withSnapshots.expected]);
      expect(size).toBe(Number(expected.stdout));
      expect(links).toBe(1);
      expect(blocks).toBe(imageBlocks);
    });
  });

  it("can be listed again and again, also in a changed order", async () => {
    await mounted([plain.path, withSnapshots.path], {}, async (mount) => {
      const first = await namesBelow(mount.mountPoint);
      expect(await namesBelow(mount.mountPoint)).toEqual(first);
      const { stdout } = await run("ls", ["-laRU", mount.mountPoint]);
      expect(stdout).not.toContain("?????");
      await run("df", [mount.mountPoint]);
      await run("stat", ["-f", mount.device(plain.path)]);
    });
  });

  it("gives snapshots names that are single, distinct and printable", async () => {
    await mounted([withSnapshots.path], {}, async (mount) => {
      const names = await namesBelow(join(mount.mountPoint, "vm.snapshots"));
      expect(names).toHaveLength(SNAPSHOTS.length);
      for (const name of names) {
        expect(name).toMatch(/^[^/\p{Cc}]+\.raw$/u);
        expect(name).not.toMatch(/^\.\.?raw$|^\.raw$/);
      }
    });
  });

  it("shows each of those snapshots exactly once", async () => {
    await mounted([withSnapshots.path], {}, async (mount) => {
      const names = await namesBelow(join(mount.mountPoint, "vm.snapshots"));
      const wanted = (await run("sha256sum", snapshotContents)).stdout;
      const paths = names.map((name) => join(mount.mountPoint, "vm.snapshots", name));
      const actual = (await run("sha256sum", paths)).stdout;
      expect(checksums(actual)).toEqual(checksums(wanted));
    });
  });

  const CHANGES: readonly (readonly [string, (mount: Mount) => readonly string[]])[] = [
    [
      "dd",
      (mount) => ["dd", "if=/dev/zero", `of=${mount.device("vm")}`, "count=1", "conv=notrunc"],
    ],
    ["truncate", (mount) => ["truncate", "-s", "0", mount.device("vm")]],
    ["fallocate", (mount) => ["fallocate", "-p", "-l", "4096", mount.device("vm")]],
    ["cp", (mount) => ["cp", "/etc/hostname", mount.device("vm")]],
    ["rm", (mount) => ["rm", "-f", mount.device("vm")]],
    ["mv", (mount) => ["mv", mount.device("vm"), join(mount.mountPoint, "x")]],
    ["touch", (mount) => ["touch", join(mount.mountPoint, "new")]],
    ["mkdir", (mount) => ["mkdir", join(mount.mountPoint, "new")]],
    ["ln", (mount) => ["ln", "-s", "x", join(mount.mountPoint, "new")]],
    ["chmod", (mount) => ["chmod", "777", mount.device("vm")]],
    ["chown", (mount) => ["chown", "1", mount.device("vm")]],
  ];

  it.each(casesOfTransport("changes", CHANGES, 4))(
    "does not let %s change anything: read-only file system",
    async (_, command) => {
      await mounted([withSnapshots.path], { args: ["-r"] }, async (mount) => {
        const [program = "", ...args] = command(mount);
        const { status, stderr } = await attempt(program, args, { env: { LC_ALL: "C" } });
        expect(status).not.toBe(0);
        expect(stderr).toMatch(/Read-only file system/);
        const latest = snapshotContents.at(-1) ?? "";
        await run("cmp", [mount.device("vm"), latest]);
      });
    },
  );

  it("says that what is not there is not there", async () => {
    await mounted([plain.path], {}, async (mount) => {
      for (const name of ["x", "data.img", "data.raw.raw", "a".repeat(255), "vm.raw"]) {
        const { stderr } = await attempt("stat", [join(mount.mountPoint, name)]);
        expect(stderr).toMatch(/No such file or directory/);
      }
      const { stderr } = await attempt("stat", [join(mount.mountPoint, "data.raw", "below")]);
      expect(stderr).toMatch(/Not a directory/);
    });
  });
});

function checksums(output: string): string[] {
  return output
    .trimEnd()
    .split("\n")
    .map((line) => line.replace(/^\\/, "").slice(0, 64))
    .sort();
}
