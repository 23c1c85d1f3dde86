// The man pages: without faults for two formatters, and with all that `tsimgfs help` has.

import { readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { commandNames, fullHelpOf, optionsOf } from "../support/help-text.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";

const MAN = join(dirname(MAIN), "../man");
const SECTIONS = [
  ...["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"],
];

describe("man pages", () => {
  let commands: readonly string[] = [];

  beforeAll(async () => {
    commands = await commandNames();
  });

  const fileOf = (command: string): string =>
    join(MAN, command === "" ? "tsimgfs.1" : `tsimgfs-${command}.1`);

  /** As a terminal without bold type shows it, in one line for each paragraph. */
  async function shown(command: string): Promise<string> {
    const env = { MANWIDTH: "1000", LC_ALL: "C.UTF-8", MANROFFOPT: "-c" };
    return (await run("man", ["-P", "cat", "-l", fileOf(command)], { env })).stdout;
  }

  it("are there for the program and for each command", async () => {
    const files = ["", ...commands].map((name) => fileOf(name));
    expect((await readdir(MAN)).map((file) => join(MAN, file)).sort()).toEqual(files.sort());
  });

  it("have no faults for mandoc and for groff", async () => {
    for (const command of ["", ...commands]) {
      const lint = await attempt("mandoc", ["-Tlint", fileOf(command)]);
      expect(lint.stdout + lint.stderr).toBe("");
      const groff = ["-ww", "-b", "-man", "-Tutf8", "-rLL=80n", fileOf(command)];
      expect((await run("groff", groff)).stderr).toBe("");
    }
  });

  it("have the usual sections, every option of the full help, and its examples", async () => {
    for (const command of ["", ...commands]) {
      const page = await shown(command);
      const help = await fullHelpOf(command);
      for (const section of SECTIONS)
        expect(page, command).toMatch(new RegExp(`^${section}$`, "m"));
      for (const option of optionsOf(help)) {
        expect(page, command).toMatch(new RegExp(`^ {7}(-\\w, )?${option}\\b`, "m"));
      }
      const [, examples = ""] = help.split(/\nExamples?:\n/);
      for (const line of examples.trimEnd().split("\n")) expect(page).toContain(line.trim());
    }
  });

  it("name each other", async () => {
    const page = await shown("");
    for (const command of commands) expect(page).toContain(`tsimgfs-${command}(1)`);
    for (const command of commands) {
      const [, list = ""] = (await shown(command)).split("\nSEE ALSO\n");
      const own = [...list.matchAll(/tsimgfs-(\w+)\(1\)/g)].map(([, name = ""]) => name);
      expect(commands).toEqual(expect.arrayContaining(own));
    }
  });
});
