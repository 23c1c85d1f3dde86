// What --help says, for tests of all commands: their names, and the options of each.

import { tsimgfs } from "./tsimgfs.ts";

/** `tsimgfs COMMAND --help`; "" for the program. */
export async function helpOf(command: string): Promise<string> {
  return (await tsimgfs([...(command === "" ? [] : [command]), "--help"])).stdout;
}

/** The commands that `tsimgfs --help` lists. */
export async function commandNames(): Promise<string[]> {
  const [, list = ""] = (await helpOf("")).split("\nCommands:\n");
  return [...(list.split("\n\n")[0] ?? "").matchAll(/^ {2}(\S+)/gm)].map(([, name = ""]) => name);
}

/** The options in a help text, with their dashes, in the order in which they are listed. */
export function optionsOf(help: string): string[] {
  const lines = help.split("\n").filter((line) => /^ {2}-/.test(line));
  return lines.flatMap((line) => {
    const [flags = ""] = line.trim().split(/ {2,}/);
    return [...flags.matchAll(/(?:^|\s)(--?[\w-]+)/g)].map(([, flag = ""]) => flag);
  });
}
