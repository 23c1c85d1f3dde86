// How the built programs start and end: what they load, what they do without, and what they leave behind.

import { cp, mkdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MAIN, REPOSITORY } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs } from "../support/tsimgfs.ts";

const DIST = resolve(dirname(MAIN), "..");
const MODULES = join(REPOSITORY, "node_modules");
const TARGET = `${process.platform}_${process.arch}`;

/** Runs the program named first, and prints what of koffi was loaded, from the package's folder on. */
const LOADED = `
  process.once("exit", () => {
    const names = Object.keys(require.cache).map((name) => /koffi.*$/.exec(name)?.[0]);
    require("node:fs").writeSync(2, JSON.stringify(names.filter((name) => name !== undefined)));
  });
  require(process.argv[1]);
`;

describe("a program", () => {
  let directory = "";
  let sample: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("start");
    sample = await makeSample(directory, "vm.qcow2");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  async function loadedOf(main: string): Promise<readonly string[]> {
    const { stderr } = await run(process.execPath, ["-e", LOADED, main, "info", sample.path]);
    const names: readonly string[] = JSON.parse(stderr);
    return names;
  }

  it("loads the binary of koffi, and not what would look for it", async () => {
    const names = await loadedOf(MAIN);
    expect(names).toEqual([expect.stringMatching(/koffi-\w+-\w+\/\w+\/koffi\.node$/)]);
  });

  /** Copies the programs, and koffi without its binaries, to a folder of that name. */
  async function copyPrograms(name: string): Promise<{ main: string; modules: string }> {
    const home = join(directory, name);
    const modules = join(home, "node_modules");
    await mkdir(modules, { recursive: true });
    await cp(DIST, join(home, "dist"), { recursive: true });
    await cp(join(REPOSITORY, "package.json"), join(home, "package.json"));
    await cp(join(MODULES, "koffi"), join(modules, "koffi"), { recursive: true });
    return { main: join(home, "dist/cli/main.js"), modules };
  }

  it("does with koffi's own loader where the binary is elsewhere", async () => {
    const { main, modules } = await copyPrograms("elsewhere");
    const binaries = join(modules, "koffi/build/koffi", TARGET);
    await mkdir(binaries, { recursive: true });
    const packageName = `@koromix/koffi-${process.platform}-${process.arch}`;
    await cp(join(MODULES, packageName, TARGET), binaries, { recursive: true });
    expect(await loadedOf(main)).toContainEqual(expect.stringMatching(/koffi\/.*index\.cjs$/));
  });

  it("refuses a binary of another version than the declarations", async () => {
    const { main, modules } = await copyPrograms("versions");
    await symlink(join(MODULES, "@koromix"), join(modules, "@koromix"));
    const declared = join(modules, "koffi/package.json");
    const own = JSON.parse(await readFile(declared, "utf8"));
    await writeFile(declared, JSON.stringify({ ...own, version: "0.0.1" }));
    expect(await loadedOf(main)).toContainEqual(expect.stringMatching(/koffi\/.*index\.cjs$/));
  });

  it.each([
    { words: ["convert", "--help"], status: 0 },
    { words: ["convert"], status: 1 },
    { words: ["convert", "-O", "qcow2", "/nonexistent", "/nonexistent2"], status: 1 },
    { words: ["dd", "--nope"], status: 1 },
  ])(
    "that has no use for the thread it has started ends all the same: $words",
    async ({ words, status }) => {
      const result = await attemptTsimgfs(words);
      expect(result.status).toBe(status);
    },
  );

  it("ends with the status of what it found, all of it printed into a pipe", async () => {
    const other = join(directory, "other.raw");
    await cp(sample.expected, other);
    await run("truncate", ["-s", "+1M", other]);
    const compare = await attemptTsimgfs([
      "compare",
      "-s",
      "-f",
      "raw",
      "-F",
      "raw",
      sample.expected,
      other,
    ]);
    expect(compare.status).toBe(1);
    // More than a pipe holds, to somebody who is slow.
    const image = join(directory, "many.raw");
    await run("truncate", ["-s", "256M", image]);
    const script = `for (let at = 0; at < 12000; at += 2)
      require("node:fs").writeSync(3, "x", at * 8192);`;
    await attempt("sh", ["-c", `exec "$0" -e '${script}' 3<>"$1"`, process.execPath, image]);
    const map = ["map", "--output", "json", "-f", "raw", image];
    const { stdout } = await run("sh", [
      "-c",
      '"$@" | (sleep 0.3; cat)',
      "sh",
      process.execPath,
      MAIN,
      ...map,
    ]);
    const ranges: readonly { start: number; length: number }[] = JSON.parse(stdout);
    expect(ranges.length).toBeGreaterThan(5000);
    expect(ranges.reduce((sum, { length }) => sum + length, 0)).toBe(256 * 2 ** 20);
  });
});
