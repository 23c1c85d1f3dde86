// The help of every command: it fits a screen, has an example, and is what the command really takes.

import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import type { DocumentedCommand } from "../../src/cli/documented-command.ts";
import { buildProgram } from "../../src/cli/program.ts";
import { commandNames, fullHelpOf, helpOf, namedOnly, optionsOf } from "../support/help-text.ts";
import { MAIN } from "../support/repository.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const COLUMNS = 80;
/** Of a screen of 24, the prompt takes one. */
const LINES_MAX = 23;
const WIDE_COLUMNS = 200;

const helps = new Map<string, string>();
const fullHelps = new Map<string, string>();
/** The definitions, as commander has them. */
const definitions = new Map<string, DocumentedCommand>();

beforeAll(async () => {
  const program = await buildProgram(() => true, undefined);
  for (const command of program.documentedCommands) definitions.set(command.name(), command);
  definitions.set("", program);
  for (const name of ["", ...(await commandNames())]) helps.set(name, await helpOf(name));
  for (const [name, command] of definitions) {
    command.configureOutput({ writeOut: (text) => fullHelps.set(name, text) }).outputManual();
  }
});

const linesOf = (help: string): string[] => help.trimEnd().split("\n");

function examplesOf(help: string): string[] {
  const [, rest = ""] = help.split(/\nExamples?:\n/);
  return linesOf(rest.split("\n\n")[0] ?? "");
}

/** `--quiet` and `-q`, of all that a command takes. */
function definedOptions(command: DocumentedCommand | undefined): string[] {
  const options = command?.options ?? [];
  const flags = options.flatMap(({ short, long }) => [short, long].filter((flag) => flag != null));
  return [...flags, "-h", "--help"].sort();
}

describe("--help", () => {
  it("is there for the program and for all of its commands", () => {
    expect([...helps.keys()].sort()).toEqual([...definitions.keys()].sort());
    expect([...helps.keys()]).toEqual(expect.arrayContaining(["", "mount", "convert", "help"]));
  });

  it("is no wider than a terminal", () => {
    const wide = [...helps.values()].flatMap(linesOf).filter((line) => line.length > COLUMNS);
    expect(wide).toEqual([]);
  });

  it("fits a screen, and leaves room for the prompt", () => {
    const lines = [...helps].map(([name, help]) => ({ name, lines: help.split("\n").length - 1 }));
    expect(lines.filter((help) => help.lines > LINES_MAX)).toEqual([]);
  });

  it("has examples of that very command", () => {
    for (const [name, help] of helps) {
      const lines = examplesOf(help);
      expect(lines.length, name).toBeGreaterThan(0);
      for (const line of lines) expect(line).toMatch(/^ {2}tsimgfs [a-z]+ .|^ {2}tsimgfs top$/);
      expect(lines.join("\n")).toContain(`tsimgfs ${name}`);
      expect(examplesOf(fullHelps.get(name) ?? ""), name).toEqual(lines);
    }
  });

  it("has examples whose options it explains", () => {
    for (const [, help] of helps) {
      for (const line of examplesOf(help)) {
        const [, command = "", rest = ""] = /^ {2}tsimgfs (\w+)(.*)$/.exec(line) ?? [];
        const known = optionsOf(helps.get(command) ?? "");
        const unquoted = rest.replace(/'[^']*'/g, "");
        const used = [...unquoted.matchAll(/ (--?[a-zA-Z][\w-]*)/g)].map(([, flag = ""]) => flag);
        expect(known, line).toEqual(expect.arrayContaining(used));
      }
    }
  });

  it("explains or names every option, once", () => {
    for (const [name, help] of helps) {
      const long = definedOptions(definitions.get(name)).filter((flag) => flag.startsWith("--"));
      const explained = optionsOf(help).filter((flag) => flag.startsWith("--"));
      expect([...explained, ...namedOnly(help, "options")].sort(), name).toEqual(long);
    }
  });

  it("lists or names every command, once", async () => {
    const help = helps.get("") ?? "";
    const [, list = ""] = help.split("\nCommands:\n");
    const listed = (list.split("\n\n")[0] ?? "").split("\n").map((line) => line.split(/ +/)[1]);
    expect(listed).toEqual(expect.arrayContaining(["mount", "umount", "attach", "convert"]));
    expect([...listed, ...namedOnly(help, "commands")].sort()).toEqual(
      (await commandNames()).sort(),
    );
  });

  it("leaves nothing out where there is room for all", () => {
    for (const name of ["list", "umount", "info", "detach", "help"]) {
      expect(optionsOf(helps.get(name) ?? "").sort()).toEqual(
        definedOptions(definitions.get(name)),
      );
    }
  });

  it("ends with where all is said: help and man page", () => {
    for (const [name, help] of helps) {
      const last = linesOf(help).at(-1) ?? "";
      const [, full = "", page = ""] =
        /^In full: tsimgfs (help\S*(?: \w+)?), or man ([\w-]+)/.exec(last) ?? [];
      expect(full, last).toBe(`help ${name}`.trimEnd());
      expect(page, last).toBe(name === "" ? "tsimgfs" : `tsimgfs-${name}`);
      expect(existsSync(join(dirname(MAIN), `../man/${page}.1`)), page).toBe(true);
    }
  });

  it("says the same on a wide terminal, in fewer lines", () => {
    for (const [name, command] of definitions) {
      const at = (width: number): string =>
        command.configureOutput({ getOutHelpWidth: () => width }).helpInformation();
      const help = at(COLUMNS);
      expect(help).toBe(helps.get(name));
      const wide = at(WIDE_COLUMNS);
      expect(wide.split(/\s+/)).toEqual(help.split(/\s+/));
      expect(linesOf(wide).length).toBeLessThanOrEqual(linesOf(help).length);
    }
  });
});

describe("tsimgfs help", () => {
  it("explains every option of a command, and --verbose and --quiet everywhere", () => {
    for (const [name, help] of fullHelps) {
      const options = optionsOf(help);
      expect([...options].sort(), name).toEqual(definedOptions(definitions.get(name)));
      expect(options).toEqual(expect.arrayContaining(["--verbose", "--quiet"]));
    }
  });

  it.each(["", "mount", "create"])("is printed: %j", async (name) => {
    expect(await fullHelpOf(name)).toBe(fullHelps.get(name));
  });

  it("is no wider than a terminal, but for tables", () => {
    for (const [name, help] of fullHelps) {
      const { notes = [], details = [] } = definitions.get(name)?.documentation ?? {};
      const tables = [...notes, ...details].flatMap((paragraph) =>
        typeof paragraph === "string" ? [] : paragraph.lines.split("\n"),
      );
      const text = linesOf(help).filter((line) => !tables.includes(line));
      expect(text.filter((line) => line.length > COLUMNS)).toEqual([]);
    }
  });

  it("says more than --help: all fields of the statistics, options of create, long texts", async () => {
    expect(fullHelps.get("stats")).toMatch(/ alloc-info\.used-data .*bytes/);
    expect(fullHelps.get("create")).toMatch(/ cluster_size=<size> /);
    expect(fullHelps.get("mount")).toMatch(/user_allow_other in\s+\/etc\/fuse\.conf/);
    for (const [name, help] of helps) {
      expect(fullHelps.get(name)).toContain(help.split(/\n(?:Arguments|Options|Commands):/)[0]);
    }
  });

  it("without a topic lists all commands, in groups, with what they do", () => {
    const help = fullHelps.get("") ?? "";
    const groups = [...help.matchAll(/^([A-Z][a-z ]+):\n((?: {2}[a-z]+ {2,}\S.*\n)+)/gm)];
    const rows = groups.flatMap(([, , list = ""]) => list.trimEnd().split("\n"));
    expect(rows.map((row) => /^ {2}(\w+) +(.*)$/.exec(row)?.slice(1)).sort()).toEqual(
      [...definitions.values()]
        .filter((command) => command.parent !== null)
        .map((command) => [command.name(), command.summary()])
        .sort(),
    );
    expect(groups.map(([, title]) => title)).toContain("Mounts");
  });

  it("explains the exit statuses", async () => {
    const { stdout } = await tsimgfs(["help", "exit-status"]);
    expect(stdout).toMatch(/^ {2}0 .*\n {2}1 .*\n(.*\n)* {2}130 .*Ctrl-C/);
  });

  it("refuses what there is not", async () => {
    await expectRefusal(["help", "bogus"], [/^tsimgfs: bogus: is neither .* mount, .*exit-status/]);
    await expectRefusal(
      ["help", "mount", "extra"],
      [/^tsimgfs: .* for 'help': .*; see tsimgfs --help$/],
    );
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
    [["help", "mont"], /^tsimgfs: mont: is neither .*; did you mean mount\? there are mount, /],
    [["--versoin"], /--versoin' \(Did you mean --version\?\); see tsimgfs --help/],
  ])("is answered with the nearest right one: %j", async (args, reason) => {
    await expectRefusal(args, [reason]);
  });
});
