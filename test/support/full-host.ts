// File systems of the host that become full, and have room again: in memory, where places are found at once, and on a disk.

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { withFileSystem, withLoop } from "./loop.ts";
import { attempt, run } from "./run.ts";
import { withScratch } from "./scratch.ts";
import { withTmpfs } from "./write-tmpfs.ts";

export interface FullHost {
  readonly directory: string;
  /** Leave so many bytes. */
  leave(room: number): Promise<void>;
  makeRoom(): Promise<void>;
}

type WithHost = (bytes: number, body: (host: FullHost) => Promise<void>) => Promise<void>;

const onTmpfs: WithHost = (bytes, body) =>
  withTmpfs(bytes, async (tmpfs) => {
    const { directory } = tmpfs;
    await body({
      directory,
      leave: async (room) => {
        const { stdout } = await run("df", ["--output=used", "-B1", directory]);
        await tmpfs.resize(Number(stdout.split("\n")[1]) + room);
      },
      makeRoom: () => tmpfs.resize(bytes),
    });
  });

/** Fills a file until there is no room, in steps that become smaller. */
async function fillUp(filler: string): Promise<void> {
  for (const bytes of ["1M", "64k", "4k"]) {
    const args = [
      "if=/dev/zero",
      `of=${filler}`,
      `bs=${bytes}`,
      "oflag=append",
      "conv=notrunc,fsync",
    ];
    const { stderr } = await attempt("dd", args);
    if (!stderr.includes("No space left")) throw new Error(`it is not full: ${stderr}`);
  }
}

const onExt4: WithHost = (bytes, body) =>
  withScratch("ext4", async (scratch) => {
    const file = join(scratch, "host");
    await run("truncate", ["-s", String(bytes), file]);
    await run("mkfs.ext4", ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", file]);
    await withLoop(file, [], (device) =>
      withFileSystem(device, [], async (directory) => {
        const filler = join(directory, "filler");
        // What is freed is there for others when the journal says so.
        const settle = async (): Promise<void> => {
          await run("sync", ["--file-system", directory]);
        };
        await body({
          directory,
          leave: async (room) => {
            await fillUp(filler);
            await run("truncate", ["-s", `-${room}`, filler]);
            await settle();
          },
          makeRoom: async () => {
            await rm(filler, { force: true });
            await settle();
          },
        });
      }),
    );
  });

/** What a host may be; both need root. */
export const FULL_HOSTS: readonly { readonly name: string; readonly withHost: WithHost }[] = [
  { name: "tmpfs", withHost: onTmpfs },
  { name: "ext4", withHost: onExt4 },
];
