// A small tmpfs for the length of a test: a host that runs out of space.

import { rm } from "node:fs/promises";
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
