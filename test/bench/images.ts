/**
 * The images that are read, made with qemu-img from seeded data.
 *
 * | name      | what                                                        |
 * |-----------|-------------------------------------------------------------|
 * | allocated | qcow2 with every cluster allocated, random data             |
 * | overlay   | empty qcow2 with `allocated` as its backing file            |
 * | zlib      | qcow2 with every cluster compressed to about half its size  |
 * | raw       | the random data itself                                      |
 * | slow      | `allocated`, where each read of its file takes its time     |
 */

import { access, open } from "node:fs/promises";
import { join } from "node:path";
import type { ReadImageName } from "./image-names.ts";
import { run } from "./run-command.ts";
import { SeededBytes } from "./seeded-bytes.ts";
import type { ServedImage } from "./served-image.ts";

export interface Image extends ServedImage {
  readonly name: ReadImageName;
  /** All files that reading the image reads. */
  readonly files: readonly string[];
  /** A raw file with the bytes that a device of this image has to show. */
  readonly contentPath: string;
}

const MIB = 1024 * 1024;
const CHUNK_SIZE = 4 * MIB;

/**
 * Make an image in `directory`, and what it depends on unless an earlier image has made it already.
 */
export async function makeImage(
  name: ReadImageName,
  directory: string,
  sizeMib: number,
  signal: AbortSignal,
): Promise<Image> {
  const random = join(directory, "random.raw");
  const allocated = join(directory, "allocated.qcow2");
  const full = { virtualSize: sizeMib * MIB, contentPath: random };
  if (name === "zlib") return makeCompressed(directory, Math.ceil(sizeMib / 2) * MIB, signal);

  if (!(await exists(random)))
    await writeSeeded(random, full.virtualSize, (bytes) => bytes, signal);
  if (name === "raw") return { ...full, name, format: "raw", path: random, files: [random] };

  if (!(await exists(allocated)))
    await run(["qemu-img", "convert", "-O", "qcow2", random, allocated], { signal });
  if (name === "allocated")
    return { ...full, name, format: "qcow2", path: allocated, files: [allocated] };

  const overlay = join(directory, "overlay.qcow2");
  await run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", allocated, "-F", "qcow2", overlay], {
    signal,
  });
  return { ...full, name, format: "qcow2", path: overlay, files: [overlay, allocated] };
}

async function makeCompressed(
  directory: string,
  virtualSize: number,
  signal: AbortSignal,
): Promise<Image> {
  const content = join(directory, "hexadecimal.raw");
  const path = join(directory, "zlib.qcow2");
  // Random hexadecimal digits: four bits in eight, and nothing for deflate to find but that.
  const toHex = (bytes: Buffer): Buffer =>
    Buffer.from(bytes.toString("hex", 0, bytes.length / 2), "latin1");
  await writeSeeded(content, virtualSize, toHex, signal);
  await run(["qemu-img", "convert", "-c", "-m", "4", "-O", "qcow2", content, path], { signal });
  return { name: "zlib", format: "qcow2", path, files: [path], contentPath: content, virtualSize };
}

/**
 * Have all of the image's files written out and in the page cache. Returns the share of them that
 * is, 0 to 1.
 */
export async function cacheImage(image: Image, signal: AbortSignal): Promise<number> {
  await run(["sync", ...image.files], { signal });
  await run(["sh", "-c", 'cat -- "$@" >/dev/null', "sh", ...image.files], { signal });
  const { stdout } = await run([
    "fincore",
    "--bytes",
    "--raw",
    "--noheadings",
    "-o",
    "RES,SIZE",
    ...image.files,
  ]);
  let cached = 0;
  let total = 0;
  for (const line of stdout.trim().split("\n")) {
    const [res = 0, size = 0] = line.trim().split(/\s+/).map(Number);
    cached += Math.min(res, size);
    total += size;
  }
  return total === 0 ? 1 : cached / total;
}

async function writeSeeded(
  path: string,
  size: number,
  transform: (bytes: Buffer) => Buffer,
  signal: AbortSignal,
): Promise<void> {
  const source = new SeededBytes();
  const file = await open(path, "wx");
  try {
    for (let offset = 0; offset < size; offset += CHUNK_SIZE) {
      signal.throwIfAborted();
      await file.writeFile(transform(source.next(CHUNK_SIZE)).subarray(0, size - offset));
    }
  } finally {
    await file.close();
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
