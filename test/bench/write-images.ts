/**
 * The images that are written to, made anew on tmpfs for each sample. On a file system with a disk
 * the cells would measure that.
 *
 * | name      | what                                                        |
 * |-----------|-------------------------------------------------------------|
 * | allocated | qcow2 with every cluster allocated, random data             |
 * | empty     | qcow2 without a cluster of data                             |
 * | overlay   | empty qcow2, its backing file a qcow2 like `allocated`      |
 * | raw       | the random data itself                                      |
 */

import { statfs } from "node:fs/promises";
import { join } from "node:path";
import { MIB } from "./cell.ts";
import type { WriteImageName } from "./image-names.ts";
import type { Image } from "./images.ts";
import { run } from "./run-command.ts";
import type { ServedImage } from "./served-image.ts";

/** Bytes. What the cells take to be the cluster size; qemu-img is told so. */
export const CLUSTER_SIZE = 64 * 1024;
export const CLUSTER_OPTION = `cluster_size=${CLUSTER_SIZE}`;

/** What fresh images are made from. */
export interface WriteSource {
  /** On tmpfs. */
  readonly directory: string;
  /** Random data. */
  readonly rawPath: string;
  /** The same as a qcow2 file in `directory`: copied, and backing file of overlays. */
  readonly allocatedPath: string;
  /** Bytes. */
  readonly virtualSize: number;
}

/** Kept allocated image, an image of the same size that is written, a copy or a tree of files, and some room. */
const ROOM_IN_SIZES = 3.5;

export async function makeWriteSource(
  raw: Image,
  directory: string,
  signal: AbortSignal,
): Promise<WriteSource> {
  const { virtualSize, path: rawPath } = raw;
  const { bavail, bsize } = await statfs(directory);
  const needed = ROOM_IN_SIZES * virtualSize;
  if (bavail * bsize < needed) {
    throw new Error(
      `${directory}: the cells that write need ${Math.ceil(needed / MIB)} MiB there, and ${Math.floor((bavail * bsize) / MIB)} MiB are free: take a smaller --size`,
    );
  }
  const allocatedPath = join(directory, "source.qcow2");
  await run(["qemu-img", "convert", "-O", "qcow2", "-o", CLUSTER_OPTION, rawPath, allocatedPath], {
    signal,
  });
  return { directory, rawPath, allocatedPath, virtualSize };
}

/**
 * A new image, which the caller removes: the room is for one. An empty one is `sizeFactor` times as
 * large as what is in the source.
 */
export async function makeFreshImage(
  name: WriteImageName,
  source: WriteSource,
  sizeFactor: number,
  signal: AbortSignal,
): Promise<ServedImage> {
  const { directory, rawPath, allocatedPath } = source;
  const virtualSize = source.virtualSize * (name === "empty" ? sizeFactor : 1);
  const format = name === "raw" ? "raw" : "qcow2";
  const path = join(directory, `${name}.${format}`);
  const create = ["-q", "-f", "qcow2", "-o", CLUSTER_OPTION] as const;
  switch (name) {
    case "allocated":
      await run(["cp", allocatedPath, path], { signal });
      break;
    case "raw":
      await run(["cp", rawPath, path], { signal });
      break;
    case "empty":
      await run(["qemu-img", "create", ...create, path, String(virtualSize)], { signal });
      break;
    case "overlay":
      await run(["qemu-img", "create", ...create, "-b", allocatedPath, "-F", "qcow2", path], {
        signal,
      });
      break;
  }
  // Punching what has not been written out yet is another thing, where this is not tmpfs.
  await run(["sync", path], { signal });
  return { name, format, path, virtualSize };
}
