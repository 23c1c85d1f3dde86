// Runs the same commands by `tsimgfs io` and by qemu-io, on two copies of an image, and compares what they say.

import { cpSync, rmSync } from "node:fs";
import { expect } from "vitest";
import { type ImageFormat, imageMap } from "./qemu.ts";
import { attempt, type RunResult, run } from "./run.ts";
import { attemptTsimgfs } from "./tsimgfs.ts";

export interface IoOptions {
  readonly format: ImageFormat;
  /** Options before the commands. */
  readonly flags?: readonly string[];
  /** Lines that are typed, instead of -c. */
  readonly input?: string;
}

/** What one of the two programs said; times and rates are gone. */
interface Said {
  readonly status: number | undefined;
  readonly output: string;
  /** What is told apart from the program's own messages. */
  readonly errors: readonly string[];
}

/** Two copies of an image that had the same done to them. */
export interface Pair {
  readonly ours: string;
  readonly theirs: string;
  readonly result: RunResult;
}

/** Lines that one program begins with its own name, and the other one, more careful to say why, too. */
const OWN_MESSAGE = /^(qemu-io|tsimgfs): /;

function plain({ status, stdout, stderr }: RunResult): Said {
  const output = stdout
    .replace(/\d+[.:][\d.:]+( sec)? \(.*\/sec and .* ops\/sec\)/g, "TIME (RATES)")
    .replace(/^(\d+,1),[\d.:,]+$/gm, "$1,TIME,RATES")
    .replaceAll("tsimgfs io> ", "qemu-io> ");
  const errors = stderr.split("\n").filter((line) => !OWN_MESSAGE.test(line));
  return { status, output, errors };
}

/**
 * Runs commands on copies of an image, whose places are `image` with other endings, and expects the same
 * output and exit status.
 */
export async function ioBesideQemu(
  image: string,
  { format, flags = [], input }: IoOptions,
  commands: readonly string[] = [],
): Promise<Pair> {
  const ours = `${image}.ours`;
  const theirs = `${image}.theirs`;
  for (const path of [ours, theirs]) {
    rmSync(path, { force: true });
    cpSync(image, path);
  }
  const args = ["-f", format, ...flags, ...commands.flatMap((command) => ["-c", command])];
  const options = input === undefined ? {} : { input };
  const [result, wanted] = await Promise.all([
    attemptTsimgfs(["io", ...args, ours], options),
    attempt("qemu-io", [...args, theirs], options),
  ]);
  expect(plain(result), `${result.stderr}\n${wanted.stderr}`).toEqual(plain(wanted));
  return { ours, theirs, result };
}

/** Expects that qemu-img finds the same disk in both copies, and nothing wrong in ours. */
export async function expectSameDisk(
  format: ImageFormat,
  { ours, theirs }: Pick<Pair, "ours" | "theirs">,
): Promise<void> {
  await run("qemu-img", ["compare", "-f", format, "-F", format, ours, theirs]);
  if (format !== "raw") await run("qemu-img", ["check", "-f", format, ours]);
}

/** Where the bytes of a disk are in the words of qemu-img map, without their places in the file. */
export async function kindsOf(image: string, format: ImageFormat): Promise<string[]> {
  const map = await imageMap(["-f", format, image]);
  if (!Array.isArray(map)) return expect.fail("no list");
  const runs: { kind: string; length: number }[] = [];
  for (const { length, depth, present, zero, data } of map) {
    // Data may be a hole of the host, which depends on how it was written.
    const what = data ? "data" : zero ? "no data, zeros" : "no data";
    const kind = `${present ? `image ${depth}` : "nothing"}: ${what}`;
    const last = runs.at(-1);
    if (last?.kind === kind) last.length += length;
    else runs.push({ kind, length });
  }
  return runs.map((each) => `${each.length} ${each.kind}`);
}
