// Real file systems made and used on devices: mkfs, a tree copied, fstrim, files deleted, fsck, and all again after a remount.

import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FILE_SYSTEMS, LOOP_KINDS } from "../support/file-systems.ts";
import { expectSameTree, makeFileTree } from "../support/file-tree.ts";
import { withFileSystem, withLoop } from "../support/loop.ts";
import { mounted } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport, itNeeds, transportHas } from "../support/transport.ts";
import { expectClean, fileUsage } from "../support/write-images.ts";

const MIB = 2 ** 20;

const IMAGES = byScale(
  [{ image: "v3", options: {} }],
  [
    { image: "v3", options: {} },
    { image: "v2", options: { compat: "0.10" } },
    { image: "small clusters", options: { cluster_size: 4096 } },
    { image: "extended L2", options: { extended_l2: "on" } },
  ],
);

const CASES = casesOfTransport(
  "file systems",
  FILE_SYSTEMS.flatMap((fileSystem) =>
    LOOP_KINDS.flatMap((kind) => IMAGES.map((image) => ({ ...fileSystem, ...kind, ...image }))),
  ),
  2,
);

describe.skipIf(!IS_ROOT)("a file system on a loop device (needs root)", () => {
  let directory = "";
  let tree = "";

  beforeAll(async () => {
    directory = await makeScratch("write-loop");
    tree = join(directory, "tree");
    await mkdir(tree);
    await makeFileTree(tree, new Random("write-loop"));
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** Lets a file system give its free space back, where the transport knows discards. */
  async function trim(target: string): Promise<void> {
    if (transportHas("fallocate")) await run("fstrim", [target]);
  }

  /** Copies the tree twice, trims, deletes one copy, trims again. */
  async function use(device: string, name: string): Promise<void> {
    await withFileSystem(device, ["-t", name], async (target) => {
      await mkdir(join(target, "kept"));
      await run("cp", ["-a", `${tree}/.`, join(target, "kept")]);
      await run("cp", ["-a", tree, join(target, "deleted")]);
      await run("sync", ["-f", target]);
      await trim(target);
      await expectSameTree(join(target, "kept"), tree);
      await run("rm", ["-r", join(target, "deleted")]);
      await run("sync", ["-f", target]);
      await trim(target);
    });
    await withFileSystem(device, ["-t", name], (target) =>
      expectSameTree(join(target, "kept"), tree),
    );
  }

  it.each(CASES)("keeps its files: $name on $image, $how", async (fileSystem) => {
    const { name, size, mkfs, fsck, losetup, readOnly, options } = fileSystem;
    const path = join(directory, `${name}.qcow2`);
    await createImage(path, "qcow2", { size, options });
    const [makeProgram = "", ...makeArgs] = mkfs;
    const [checkProgram = "", ...checkArgs] = fsck;
    await mounted([path], {}, async (mount) => {
      await withLoop(mount.device(path), losetup, async (loop) => {
        await run(makeProgram, [...makeArgs, loop]);
        await use(loop, name);
        await run(checkProgram, [...checkArgs, loop]);
      });
    });
    await expectClean(path);
    await mounted([path], { args: ["-r"] }, async (mount) => {
      await withLoop(mount.device(path), ["--read-only"], async (loop) => {
        await run(checkProgram, [...checkArgs, loop]);
        await withFileSystem(loop, ["-t", name, "-o", readOnly], (target) =>
          expectSameTree(join(target, "kept"), tree),
        );
      });
    });
  });

  itNeeds("fallocate")("gives the space of deleted files back to the host", async () => {
    const path = join(directory, "trim.qcow2");
    await createImage(path, "qcow2", { size: 256 * MIB });
    await mounted([path], {}, async (mount) => {
      await withLoop(mount.device(path), [], async (loop) => {
        await run("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0", loop]);
        await withFileSystem(loop, ["-o", "discard"], async (target) => {
          const fill = ["if=/dev/urandom", `of=${target}/large`, "bs=1M", "count=128"];
          await run("dd", [...fill, "conv=fsync", "status=none"]);
          expect((await fileUsage(path)).allocated).toBeGreaterThan(128 * MIB);
          await run("rm", [`${target}/large`]);
          await run("sync", ["-f", target]);
          await run("fstrim", [target]);
        });
        await run("fsck.ext4", ["-f", "-n", loop]);
      });
    });
    await expectClean(path);
    expect((await fileUsage(path)).allocated).toBeLessThan(64 * MIB);
  });

  it("lies in partitions too", async () => {
    const path = join(directory, "partitions.qcow2");
    await createImage(path, "qcow2", { size: 128 * MIB });
    await mounted([path], {}, async (mount) => {
      const device = mount.device(path);
      await run("sfdisk", ["--quiet", device], { input: "label: gpt\n,64M\n,,\n" });
      for (const [offset, size] of [
        [MIB, 64 * MIB],
        [65 * MIB, 60 * MIB],
      ]) {
        const where = ["--offset", String(offset), "--sizelimit", String(size)];
        await withLoop(device, where, async (loop) => {
          await run("mkfs.ext4", ["-q", "-F", loop]);
          await use(loop, "ext4");
          await run("fsck.ext4", ["-f", "-n", loop]);
        });
      }
    });
    await expectClean(path);
  });
});
