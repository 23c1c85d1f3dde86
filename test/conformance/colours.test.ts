// Colours, and other control sequences: on terminals only, and nowhere if NO_COLOR is set or the terminal is dumb.

import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";

type Environment = Readonly<Record<string, string>>;

const ESCAPE = "\u001b";
const COLOURFUL: Environment = { NO_COLOR: "", TERM: "xterm" };
/** no-color.org: set to anything that is not empty. */
const PLAIN: readonly Environment[] = [
  { NO_COLOR: "1", TERM: "xterm" },
  { NO_COLOR: "0", TERM: "xterm" },
  { NO_COLOR: "", TERM: "dumb" },
];

let directory = "";

beforeAll(async () => {
  directory = await makeScratch("colours");
  await writeFile(join(directory, "vm.raw"), new Random("colours").bytes(4 * 2 ** 20));
  await run("qemu-img", ["convert", "-O", "qcow2", "vm.raw", "vm.qcow2"], { cwd: directory });
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

/** All that a command prints: to a terminal, or to a pipe. */
async function shown(words: string, env: Environment, where: "terminal" | "pipe"): Promise<string> {
  const command = `${process.execPath} ${MAIN} ${words}`;
  const args =
    where === "terminal"
      ? ["script", "-qec", command, "/dev/null"]
      : ["sh", "-c", `${command} 2>&1`];
  const [program = "", ...rest] = args;
  const { stdout } = await run(program, rest, { cwd: directory, env: { DEBUG: "", ...env } });
  return stdout;
}

const DEBUG = "tsimgfs:*";

describe.each([
  ["the lines of DEBUG", "info vm.qcow2", { DEBUG }, /tsimgfs:open/],
  ["top", "top --once -d 0.1", {}, /DEVICE/],
  ["the picture of map", "map --picture vm.qcow2", {}, /vm\.qcow2/],
] as const)("%s", (_, words, more, wanted) => {
  it("has colours on a terminal", async () => {
    const text = await shown(words, { ...COLOURFUL, ...more }, "terminal");
    expect(text).toMatch(wanted);
    expect(text).toContain(`${ESCAPE}[`);
  });

  it.each(PLAIN)("has none there with %o", async (env) => {
    const text = await shown(words, { ...env, ...more }, "terminal");
    expect(text).toMatch(wanted);
    expect(text).not.toContain(ESCAPE);
  });

  it("has none in a pipe", async () => {
    const text = await shown(words, { ...COLOURFUL, ...more }, "pipe");
    expect(text).toMatch(wanted);
    expect(text).not.toContain(ESCAPE);
  });
});

describe("no control sequence at all, on a terminal with colours, is in", () => {
  it.each([
    ["progress", "convert -p -O qcow2 vm.raw out.qcow2", /\r\[[=> ]{30}\] +\d+% of 4 MiB/],
    ["check", "check vm.qcow2", /No errors/],
    ["--help", "check --help", /Usage/],
    ["help", "help check", /NAME|Usage/],
    ["--verbose", "info -v vm.qcow2", /tsimgfs: open: /],
    ["a table", "map vm.qcow2", /Offset/],
  ])("%s", async (_, words, wanted) => {
    const text = await shown(words, COLOURFUL, "terminal");
    expect(text).toMatch(wanted);
    expect(text).not.toContain(ESCAPE);
  });
});

it("progress leaves an empty line behind it", async () => {
  const text = await shown("convert -p -O qcow2 vm.raw out.qcow2", COLOURFUL, "terminal");
  // As a terminal has it: a carriage return goes to the start of the line, where characters replace what is there.
  const row: string[] = [];
  let drawn = 0;
  for (const piece of text.split("\r")) {
    row.splice(0, piece.length, ...piece);
    if (piece.trim() !== "") drawn++;
  }
  expect(drawn).toBeGreaterThan(0);
  expect(text.endsWith("\r")).toBe(true);
  expect(row.join("").trim()).toBe("");
});
