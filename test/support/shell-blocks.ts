// The commands that a Markdown document shows, in its fenced blocks of `sh` and `console`.

/** A command, as it can be given to a shell. */
export interface ShownCommand {
  readonly text: string;
  /** The lines of output that the document shows; undefined: it shows none of this command. */
  readonly output: readonly string[] | undefined;
  /** Of the document, from 1 on. */
  readonly line: number;
}

/** What is below one heading: read and run from top to bottom. */
export interface ShownSection {
  readonly heading: string;
  readonly commands: readonly ShownCommand[];
}

/** A command that goes on in the next line. */
const CONTINUED = /\\$/;

/** Commands of a block that has nothing else: comments and empty lines apart. */
function commandsOf(lines: readonly string[], firstLine: number): ShownCommand[] {
  const commands: ShownCommand[] = [];
  let text = "";
  for (const [index, line] of lines.entries()) {
    text += `${line}\n`;
    if (CONTINUED.test(line)) continue;
    if (!/^\s*(#.*)?$/.test(text)) {
      commands.push({ text: text.trimEnd(), output: undefined, line: firstLine + index });
    }
    text = "";
  }
  return commands;
}

/** Commands behind a `$ `, each with the output that follows it. */
function dialogueOf(lines: readonly string[], firstLine: number): ShownCommand[] {
  const commands: (ShownCommand & { readonly output: string[] })[] = [];
  for (const [index, line] of lines.entries()) {
    if (line.startsWith("$ ")) {
      commands.push({ text: line.slice(2), output: [], line: firstLine + index });
    } else {
      commands.at(-1)?.output.push(line);
    }
  }
  return commands;
}

/** The sections of a document that show commands. */
export function shownSections(markdown: string): ShownSection[] {
  const sections: { heading: string; commands: ShownCommand[] }[] = [];
  let block: { readonly kind: string; readonly lines: string[] } | undefined;
  for (const [index, line] of markdown.split("\n").entries()) {
    const fence = /^```(\w*)/.exec(line);
    if (block === undefined && fence !== null) {
      block = { kind: fence[1] ?? "", lines: [] };
    } else if (block !== undefined && fence === null) {
      block.lines.push(line);
    } else if (block !== undefined) {
      const firstLine = index + 1 - block.lines.length;
      const { kind, lines } = block;
      if (kind === "sh") sections.at(-1)?.commands.push(...commandsOf(lines, firstLine));
      if (kind === "console") sections.at(-1)?.commands.push(...dialogueOf(lines, firstLine));
      block = undefined;
    } else if (/^#+ /.test(line)) {
      sections.push({ heading: line.replace(/^#+ /, ""), commands: [] });
    }
  }
  return sections.filter(({ commands }) => commands.length > 0);
}

/** What a document shows of output: `…` is anything in a line; as a line of its own, any lines. */
export function outputPattern(lines: readonly string[]): RegExp {
  const parts = lines.map((line) => {
    if (line === "…") return "(?:.*\\n)*";
    return `${line.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/…/g, ".*")}\\n`;
  });
  return new RegExp(`^${parts.join("")}$`);
}
