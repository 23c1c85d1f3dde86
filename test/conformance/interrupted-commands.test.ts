// Ctrl-C at moments drawn at random: a target that is new is complete or gone, and an image stays what it is.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { copyFile, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";
import { LONG } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

const MOMENTS = LONG ? 20 : 3;
/** From the start of Node until after what the commands below do. */
const LATEST_MS = 900;

describe("a command that Ctrl-C stops", () => {
  let directory = "";
  let source = "";
  let image = "";
  const random = new Random("interrupted-commands");

  beforeAll(async () => {
    directory = await makeScratch("interrupted-commands");
    source = join(directory, "source.raw");
    image = join(directory, "image.qcow2");
    await run("dd", ["if=/dev/urandom", `of=${source}`, "bs=1M", "count=48", "status=none"]);
    await run("qemu-img", ["convert", "-O", "qcow2", source, image]);
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** @returns the exit status, or the signal: it came before the command could hear it */
  async function interrupt(args: readonly string[]): Promise<number | string | null> {
    const child = spawn(process.execPath, [MAIN, ...args], { stdio: "ignore" });
    const ended = new Promise<number | string | null>((resolve) =>
      child.once("exit", (status, signal) => resolve(status ?? signal)),
    );
    await sleep(random.below(LATEST_MS));
    child.kill("SIGINT");
    return await ended;
  }

  it.each([
    ["convert", (target: string) => ["convert", "-O", "qcow2", source, target]],
    ["convert -c", (target: string) => ["convert", "-c", "-O", "qcow2", source, target]],
    ["dd", (target: string) => ["dd", "-O", "qcow2", `if=${source}`, `of=${target}`]],
  ])("has made its target, or removed it: %s", async (_, commandLine) => {
    for (let moment = 0; moment < MOMENTS; moment++) {
      const target = join(directory, "target.qcow2");
      const status = await interrupt(commandLine(target));
      if (status === 0) await run("qemu-img", ["compare", source, target]);
      else {
        expect([130, "SIGINT"]).toContain(status);
        expect(existsSync(target)).toBe(false);
      }
      await rm(target, { force: true });
    }
  });

  it.each([
    ["amend", ["amend", "-o", "refcount_bits=64"]],
    ["resize", ["resize", "-q", "--preallocation=metadata"]],
    ["bench", ["bench", "-q", "-c", "2000", "--pattern", "0"]],
  ])("leaves an image that is intact, with its disk: %s", async (name, args) => {
    for (let moment = 0; moment < MOMENTS; moment++) {
      const copy = join(directory, "copy.qcow2");
      await copyFile(image, copy);
      const status = await interrupt([...args, copy, ...(name === "resize" ? ["96M"] : [])]);
      expect([0, 130, "SIGINT"]).toContain(status);
      // 0: also no leaked cluster.
      await run("qemu-img", ["check", "-q", copy]);
      // Where one is longer, it has to have zeros there.
      await run("qemu-img", ["compare", "-q", source, copy]);
    }
  });

  it.each([
    ["snapshot -c", (copy: string) => ["snapshot", "-c", "now", copy]],
    ["snapshot -d", (copy: string) => ["snapshot", "-d", "then", copy]],
    ["bitmap --merge", (copy: string) => ["bitmap", "--merge", "one", copy, "other"]],
    ["rebase -u", (copy: string) => ["rebase", "-u", "-b", source, "-F", "raw", copy]],
  ])("does it or not, and leaves leaked clusters at most: %s", async (_, commandLine) => {
    const tables = join(directory, "tables.qcow2");
    if (!existsSync(tables)) {
      await copyFile(image, tables);
      for (const name of ["one", "other"]) {
        await run("qemu-img", ["bitmap", "--add", "-g", "512", tables, name]);
      }
      await run("qemu-io", ["-c", "write -P 7 1M 8M", tables]);
      await run("qemu-img", ["snapshot", "-c", "then", tables]);
      await run("qemu-img", ["convert", "-O", "raw", tables, `${tables}.raw`]);
    }
    const copy = join(directory, "copy.qcow2");
    await rm(copy, { force: true });
    const before = await readdir(directory);
    for (let moment = 0; moment < MOMENTS; moment++) {
      await copyFile(tables, copy);
      expect([0, "SIGINT"]).toContain(await interrupt(commandLine(copy)));
      expect([0, 3]).toContain((await attempt("qemu-img", ["check", "-q", copy])).status);
      await run("qemu-img", ["compare", "-q", `${tables}.raw`, copy]);
      await rm(copy);
      expect(await readdir(directory)).toEqual(before);
    }
  });

  it.each([["measure"], ["compare", "source"], ["map"], ["info"], ["stats"], ["check"]])(
    "changes nothing if it only reads: %s",
    async (name, ...others) => {
      const before = await readdir(directory);
      const sources = others.map(() => source);
      for (let moment = 0; moment < MOMENTS; moment++) {
        const status = await interrupt([name, image, ...sources]);
        expect([0, 130, "SIGINT"]).toContain(status);
        await run("qemu-img", ["check", "-q", image]);
        expect(await readdir(directory)).toEqual(before);
      }
    },
  );
});
