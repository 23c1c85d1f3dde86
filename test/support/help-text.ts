// What the help says, for tests of all commands: their names, and the options of each.

import { tsimgfs } from "./tsimgfs.ts";

/** `tsimgfs COMMAND --help`, which fits a screen; "" for the program. */
export async function helpOf(command: string): Promise<string> {
  return (await tsimgfs([...(command === "" ? [] : [command]), "--help"])).stdout;
}

/** `tsimgfs help COMMAND`, which says all; "" for the program. */
export async function fullHelpOf(command: string): Promise<string> {
  return (await tsimgfs(["help", ...(command === "" ? [] : [command])])).stdout;
}

/** The commands that `tsimgfs help` lists. */
export async function commandNames(): Promise<string[]> {
  return [...(await fullHelpOf("")).matchAll(/^ {2}([a-z]+) {2,}\S/gm)].map(
    ([, name = ""]) => name,
  );
}

/** The options that a help text explains, with their dashes, in the order in which they are listed. */
export function optionsOf(help: string): string[] {
  const [lists = ""] = help.split(/^More /m);
  const lines = lists.split("\n").filter((line) => /^ {2}-/.test(line));
  return lines.flatMap((line) => {
    const [flags = ""] = line.trim().split(/ {2,}/);
    return [...flags.matchAll(/(?:^|\s)(--?[\w-]+)/g)].map(([, flag = ""]) => flag);
  });
}

/** What a help text only names: `More options: --a, --b`. */
export function namedOnly(help: string, what: "commands" | "options"): string[] {
  const [, names = ""] = new RegExp(`^More ${what}: (.*(?:\\n {2}.*)*)$`, "m").exec(help) ?? [];
  return names.split(/,\s+/).filter((name) => name !== "");
}
