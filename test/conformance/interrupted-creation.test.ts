// Ctrl-C, and the signals of a session that ends, while an image is made: it is complete, or there is none.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { PASSPHRASE } from "../support/encrypted-image.ts";
import { interrupted, STOPS, type Stop } from "../support/interrupted.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { LONG } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;
const SIZE = String(48 * MIB);
const MOMENTS = 12;

const random = new Random("interrupted-creation");
let directory = "";
const path = (name: string): string => join(directory, name);

beforeAll(async () => {
  directory = await makeScratch("interrupted-creation");
  await writeFile(path("secret"), PASSPHRASE);
  await writeFile(path("source.raw"), random.bytes(24 * MIB));
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

/** A kind of image: the command but the target and what follows it; and how often its file changes, about. */
interface Creation {
  readonly name: string;
  readonly args: () => readonly string[];
  readonly size?: string;
  readonly changes: number;
}

const create = (format: string, options: string): readonly string[] => [
  ...["create", "-q", "-f", format],
  ...["-o", options],
];
const LUKS = "encrypt.format=luks,encrypt.iter-time=10";

const CREATIONS: readonly Creation[] = [
  {
    name: "create -f raw -o preallocation=full",
    args: () => create("raw", "preallocation=full"),
    size: SIZE,
    changes: 40,
  },
  {
    name: "create -f raw -o preallocation=falloc",
    args: () => create("raw", "preallocation=falloc"),
    size: "1G",
    changes: 4,
  },
  {
    name: "create -f qcow2 -o preallocation=full",
    args: () => create("qcow2", "preallocation=full"),
    size: SIZE,
    changes: 40,
  },
  {
    name: "create -f qcow2 -o preallocation=falloc",
    args: () => create("qcow2", "preallocation=falloc"),
    size: "1G",
    changes: 6,
  },
  {
    name: "create -f qcow2 -o preallocation=metadata",
    args: () => create("qcow2", "preallocation=metadata,cluster_size=512"),
    size: "2G",
    changes: 40,
  },
  {
    name: "create -f qcow2 with a data file",
    args: () => create("qcow2", `preallocation=full,data_file=${path("target.data")}`),
    size: SIZE,
    changes: 3,
  },
  {
    name: "create -f qcow2, encrypted",
    args: () => [...create("qcow2", `${LUKS},preallocation=full`), ...["--secret", path("secret")]],
    size: SIZE,
    changes: 40,
  },
  { name: "create -f qed", args: () => create("qed", "cluster_size=64k"), size: SIZE, changes: 3 },
  {
    name: "convert -o preallocation=full",
    args: () => ["convert", "-O", "qcow2", "-o", "preallocation=full", path("source.raw")],
    changes: 40,
  },
  {
    name: "convert -c",
    args: () => ["convert", "-c", "-O", "qcow2", path("source.raw")],
    changes: 15,
  },
  {
    name: "dd",
    args: () => ["dd", "-O", "raw", `if=${path("source.raw")}`],
    changes: 20,
  },
];

describe.each(CREATIONS)("$name", ({ args, size, changes }) => {
  const target = (): string => path("target.raw");
  const line = (): string[] => {
    const words = args();
    const named = words[0] === "dd" ? `of=${target()}` : target();
    return [...words, named, ...(size === undefined ? [] : [size])];
  };
  const moment = (signal: Stop): Parameters<typeof interrupted>[1] => {
    return { file: target(), changes: random.between(1, changes), signal };
  };

  it("leaves no file when it is stopped", async () => {
    const before = readdirSync(directory);
    const stops: readonly Stop[] = LONG
      ? Array.from({ length: MOMENTS }, () => random.pick(["SIGINT", "SIGTERM", "SIGHUP"]))
      : [random.pick(["SIGINT", "SIGTERM", "SIGHUP"])];
    for (const signal of stops) {
      const { status, output } = await interrupted(line(), moment(signal));
      if (status === 0) {
        // It came too late.
        expect(output).toBe("");
        const { stdout } = await tsimgfs(["info", "--output", "json", target()]);
        expect(JSON.parse(stdout)).toMatchObject({ format: expect.any(String) });
      } else {
        expect(output).toMatch(
          /^tsimgfs: [^\n]+target\.raw: stopped before [^\n]+; it was removed\n$/,
        );
        expect(status).toBe(STOPS[signal]);
        expect(existsSync(target())).toBe(false);
      }
      for (const made of [target(), path("target.data")]) await rm(made, { force: true });
      expect(readdirSync(directory)).toEqual(before);
    }
  });
});

describe("an image that was there", () => {
  it.each([
    ["raw", "SIGINT"],
    ["qcow2", "SIGTERM"],
    ["raw", "SIGHUP"],
    ["qcow2", "SIGQUIT"],
  ] as const)(
    "is empty when create -f %s in its place is stopped by %s",
    async (format, signal) => {
      const file = path("old.img");
      await run("qemu-img", ["create", "-q", "-f", "qcow2", file, "1G"]);
      const args = [...create(format, "preallocation=full"), file, "4G"];
      // The disk is so large that the signal comes in time.
      const { status, output } = await interrupted(args, { file, changes: 4, signal });
      expect(output).toMatch(
        /old\.img: stopped before it was made; what was there before is lost, and it is empty now\n$/,
      );
      expect(status).toBe(STOPS[signal]);
      expect(readFileSync(file).length).toBe(0);
      const { stdout } = await tsimgfs(["help", "exit-status"]);
      expect(stdout).toMatch(new RegExp(`^ +${status} +stopped by ${signal}\\b`, "m"));
    },
  );
});
