// The help of every command: it fits a screen, has an example, and is what the command really takes.

import { beforeAll, describe, expect, it } from "vitest";
import { commandNames, helpOf, optionsOf } from "../support/help-text.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const COLUMNS = 80;
const LINES_MAX = 45;
const LINES_MEAN_MAX = 27;

describe("--help", () => {
  const helps = new Map<string, string>();

  beforeAll(async () => {
    for (const name of ["", ...(await commandNames())]) helps.set(name, await helpOf(name));
  });

  const linesOf = (help: string): string[] => help.trimEnd().split("\n");

  it("lists the commands", () => {
    expect([...helps.keys()]).toEqual(expect.arrayContaining(["", "mount", "convert", "help"]));
  });

  it("is no wider than a terminal", () => {
    const wide = [...helps.values()].flatMap(linesOf).filter((line) => line.length > COLUMNS);
    expect(wide).toEqual([]);
  });

  it("fits a screen", () => {
    const lines = [...helps].map(([name, help]) => ({ name, lines: linesOf(help).length }));
    expect(lines.filter((help) => help.lines > LINES_MAX)).toEqual([]);
    const sum = lines.reduce((total, help) => total + help.lines, 0);
    expect(sum / lines.length).toBeLessThanOrEqual(LINES_MEAN_MAX);
  });

  it("ends with examples of that very command", () => {
    for (const [name, help] of helps) {
      const [, examples = ""] = help.split(/\nExamples?:\n/);
      const lines = linesOf(examples);
      expect(lines.length, name).toBeGreaterThan(0);
      for (const line of lines) expect(line).toMatch(/^ {2}tsimgfs [a-z]+ .|^ {2}tsimgfs top$/);
      expect(examples).toContain(`tsimgfs ${name}`);
    }
  });

  it("has examples whose options there are", () => {
    for (const [, help] of helps) {
      const [, examples = ""] = help.split(/\nExamples?:\n/);
      for (const line of linesOf(examples)) {
        const [, command = "", rest = ""] = /^ {2}tsimgfs (\w+)(.*)$/.exec(line) ?? [];
        const known = optionsOf(helps.get(command) ?? "");
        const unquoted = rest.replace(/'[^']*'/g, "");
        const used = [...unquoted.matchAll(/ (--?[a-zA-Z][\w-]*)/g)].map(([, flag = ""]) => flag);
        expect(known, line).toEqual(expect.arrayContaining(used));
      }
    }
  });

  it("offers --verbose and --quiet everywhere", () => {
    for (const help of helps.values()) {
      expect(optionsOf(help)).toEqual(expect.arrayContaining(["--verbose", "--quiet"]));
    }
  });
});

describe("tsimgfs help", () => {
  it("says more than --help: all fields of the statistics, options of create", async () => {
    expect((await tsimgfs(["help", "stats"])).stdout).toMatch(/ alloc-info\.used-data .*bytes/);
    const { stdout } = await tsimgfs(["help", "create"]);
    expect(stdout).toContain(await helpOf("create").then((text) => text.split("\nExamples:")[0]));
    expect(stdout).toMatch(/ cluster_size=<size> /);
  });

  it("without a topic is the help of the program", async () => {
    expect((await tsimgfs(["help"])).stdout).toBe(await helpOf(""));
  });

  it("explains the exit statuses", async () => {
    const { stdout } = await tsimgfs(["help", "exit-status"]);
    expect(stdout).toMatch(/^ {2}0 .*\n {2}1 .*\n(.*\n)* {2}130 .*Ctrl-C/);
  });

  it("refuses what there is not", async () => {
    await expectRefusal(["help", "bogus"], [/^tsimgfs: bogus: is neither .* mount, .*exit-status/]);
  });
});

describe("a mistyped word", () => {
  it.each([
    [["mout", "a", "b"], /^tsimgfs: unknown command 'mout' \(Did you mean mount\?\)/],
    [["mount", "--reda-only", "a", "b"], /--reda-only' \(Did you mean --read-only\?\)/],
    [
      ["info", "--outptu", "json", "a"],
      /--outptu' \(Did you mean --output\?\); see tsimgfs info --/,
    ],
    [["--versoin"], /--versoin' \(Did you mean --version\?\); see tsimgfs --help/],
  ])("is answered with the nearest right one: %j", async (args, reason) => {
    await expectRefusal(args, [reason]);
  });
});
