// What documents say of the command line, against what `--help` says: a command or an option that is gone is found.

import { expect } from "vitest";
import { tsimgfs } from "./tsimgfs.ts";

const helps = new Map<string, Promise<string>>();

/** What `tsimgfs help COMMAND` prints; without a command, the list of all. */
function helpOf(...command: readonly string[]): Promise<string> {
  const key = command.join(" ");
  const help = helps.get(key) ?? tsimgfs(["help", ...command]).then(({ stdout }) => stdout);
  helps.set(key, help);
  return help;
}

/** Uses of the command in the running text of a document, and in its indented blocks: without what is quoted. */
function* usesIn(markdown: string): Generator<string> {
  for (const [, inline, block] of markdown.matchAll(/`tsimgfs ([^`]+)`|^ {4}tsimgfs (.+)$/gm)) {
    const text = (inline ?? block ?? "").replace(/'[^']*'|"[^"]*"/g, "QUOTED");
    const [use = ""] = text.replaceAll("\\|", " ").split(/ (?:&&|[#;|]) ?|;/);
    yield use;
  }
}

/** Expects that the commands and options that a document names are those of the program. */
export async function expectShownOptions(path: string, markdown: string): Promise<void> {
  const commands = [...(await helpOf()).matchAll(/^ {2}([a-z]+) /gm)].map(([, name]) => name);
  for (const use of usesIn(markdown)) {
    const [command = "", ...words] = use.split(/[\s[\]()]+/);
    if (command === "help" || command === "" || command.startsWith("-")) continue;
    expect(commands, `${path}: tsimgfs ${use}`).toContain(command);
    const options = words.flatMap((word) => /^--?[a-zA-Z][\w-]*/.exec(word) ?? []);
    const help = await helpOf(command);
    for (const option of options) {
      expect(help, `${path}: tsimgfs ${use}`).toMatch(new RegExp(`(^|[ ,])${option}\\b`, "m"));
    }
  }
}
