// A small tmpfs for the length of a test: a host that runs out of space.

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { run } from "./run.ts";
import { makeScratch } from "./scratch.ts";

/** A tmpfs of a size that can be changed. */
export class Tmpfs {
  readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
  }

  async resize(bytes: number): Promise<void> {
    await run("mount", ["-o", `remount,size=${bytes}`, this.directory]);
  }
}

/** Calls `body` with a tmpfs that holds `bytes` bytes, and unmounts it afterwards. Needs root. */
export async function withTmpfs<T>(bytes: number, body: (tmpfs: Tmpfs) => Promise<T>): Promise<T> {
  const directory = await makeScratch("tmpfs");
  try {
    await run("mount", ["-t", "tmpfs", "-o", `size=${bytes}`, "tmpfs", directory]);
    try {
      return await body(new Tmpfs(directory));
    } finally {
      await run("umount", ["--lazy", directory]);
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Bytes of a file system that a copy of an image lies on, before it is made full, and after that. */
const ROOMY = 64 * 2 ** 20;

/**
 * Calls `body` with a copy of an image on a file system that has `room` bytes left, of which `makeRoom` makes more.
 * Needs root.
 */
export async function withRoom(
  original: string,
  room: number,
  body: (copy: string, makeRoom: () => Promise<void>) => Promise<void>,
): Promise<void> {
  await withTmpfs(ROOMY, async (tmpfs) => {
    const copy = join(tmpfs.directory, "copy.qcow2");
    // Holes stay holes: what is written to them needs room.
    await run("cp", ["--sparse=always", original, copy]);
    const { stdout } = await run("df", ["--output=used", "-B1", tmpfs.directory]);
    await tmpfs.resize(Number(stdout.split("\n")[1]) + room);
    await body(copy, () => tmpfs.resize(ROOMY));
  });
}
