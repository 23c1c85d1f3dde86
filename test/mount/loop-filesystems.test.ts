// Real file systems on devices: a loop device on the mount, the file system on it, and its files compared.

import { mkdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, it } from "vitest";
import { FILE_SYSTEMS, LOOP_KINDS } from "../support/file-systems.ts";
import { expectSameTree, makeFileTree } from "../support/file-tree.ts";
import { withFileSystem, withLoop } from "../support/loop.ts";
import { mounted } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport } from "../support/transport.ts";

const MIB = 2 ** 20;

const CASES = casesOfTransport("file systems", FILE_SYSTEMS, 1);
const LOOPS = casesOfTransport("loop devices", LOOP_KINDS, 1);

/** Where the file system starts in the disk: a first partition begins here. */
const PARTITION_OFFSET = MIB;

describe.skipIf(!IS_ROOT).each(CASES)("a loop device with $name (needs root)", (fileSystem) => {
  const { name, size, mkfs, readOnly, fsck } = fileSystem;
  let directory = "";
  let tree = "";
  let images: { readonly plain: string; readonly compressed: string; readonly overlay: string };
  let partitioned = "";

  beforeAll(async () => {
    directory = await makeScratch("loop");
    tree = join(directory, "tree");
    await mkdir(tree);
    await makeFileTree(tree, new Random(name));
    const raw = join(directory, "disk.raw");
    await run("truncate", ["-s", String(size), raw]);
    const [program = "", ...args] = mkfs;
    await run(program, [...args, raw]);
    await withLoop(raw, [], (device) =>
      withFileSystem(device, [], async (target) => {
        await run("cp", ["-a", `${tree}/.`, target]);
      }),
    );
    images = await makeImages(directory, raw);
    partitioned = join(directory, "partitioned.qcow2");
    await makePartitioned(directory, raw, partitioned);
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** Checks and mounts the file system on a loop device, and compares its files. */
  async function expectTree(device: string, losetup: readonly string[]): Promise<void> {
    await withLoop(device, ["--read-only", ...losetup], async (loop) => {
      const [program = "", ...args] = fsck;
      await run(program, [...args, loop]);
      await withFileSystem(loop, ["-t", name, "-o", readOnly], (mounted) =>
        expectSameTree(mounted, tree),
      );
    });
  }

  it.each(LOOPS)("on a qcow2 image, $how, has its files", async ({ losetup }) => {
    await mounted([images.plain], { args: ["-r"] }, (mount) =>
      expectTree(mount.device(images.plain), losetup),
    );
  });

  it.each(LOOPS)("on a compressed image, $how, has its files", async ({ losetup }) => {
    await mounted([images.compressed], { args: ["-r"] }, (mount) =>
      expectTree(mount.device(images.compressed), losetup),
    );
  });

  it.each(LOOPS)("on an overlay, $how, has its files", async ({ losetup }) => {
    await mounted([images.overlay], { args: ["-r"] }, (mount) =>
      expectTree(mount.device(images.overlay), losetup),
    );
  });

  it.each(LOOPS)("on a partition by offset, $how, has its files", async ({ losetup }) => {
    const where = ["--offset", String(PARTITION_OFFSET), "--sizelimit", String(size)];
    await mounted([partitioned], { args: ["-r"] }, (mount) =>
      expectTree(mount.device(partitioned), [...where, ...losetup]),
    );
  });
});

async function makeImages(
  directory: string,
  raw: string,
): Promise<{ readonly plain: string; readonly compressed: string; readonly overlay: string }> {
  const plain = join(directory, "plain.qcow2");
  const compressed = join(directory, "compressed.qcow2");
  const overlay = join(directory, "overlay.qcow2");
  const convert = ["convert", "-f", "raw", "-O", "qcow2"];
  await run("qemu-img", [...convert, raw, plain]);
  await run("qemu-img", [...convert, "-c", raw, compressed]);
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", plain, "-F", "qcow2", overlay]);
  return { plain, compressed, overlay };
}

/** A disk whose first partition is the file system. */
async function makePartitioned(directory: string, raw: string, image: string): Promise<void> {
  const disk = join(directory, "partitioned.raw");
  const seek = [`seek=${PARTITION_OFFSET}`, "oflag=seek_bytes", "conv=sparse,notrunc"];
  await run("dd", [`if=${raw}`, `of=${disk}`, "bs=1M", "status=none", ...seek]);
  // conv=sparse may leave the file short, and a disk ends on a partition's alignment.
  const { size } = await stat(raw);
  await run("truncate", ["-s", String(PARTITION_OFFSET + size + MIB), disk]);
  await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", disk, image]);
}
