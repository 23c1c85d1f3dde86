/** Commands that explain themselves: help, man pages and shell completion are made of one description. */

import { Command, Option } from "commander";

/** Lines that stay as they are: a table. */
export interface Table {
  readonly lines: string;
}
export type Paragraph = string | Table;
/** What it does, and the line to type. */
export type Example = readonly [purpose: string, line: string];
export type ExitStatus = readonly [status: number, meaning: string];

/** What there is to say of a command beside its description, arguments and options. */
export interface Documentation {
  /** Printed by `--help`, which fits a screen. */
  readonly notes?: readonly Paragraph[];
  /** Printed by `tsimgfs help NAME` and in the man page only. */
  readonly details?: readonly Paragraph[];
  /** Where it is not 0 for success, and 1 for failure. */
  readonly exitStatus?: readonly ExitStatus[];
  readonly examples: readonly Example[];
  /** Commands of tsimgfs that have to do with it, and other man pages, such as `losetup(8)`. */
  readonly seeAlso?: readonly string[];
}

/** Columns of a terminal that nobody knows the width of. */
const WIDTH_DEFAULT = 80;

export class DocumentedCommand extends Command {
  #documentation: Documentation = { examples: [] };

  /** The commands of a program, all of which are documented ones. */
  get documentedCommands(): readonly DocumentedCommand[] {
    return this.commands.filter((command) => command instanceof DocumentedCommand);
  }

  override createCommand(name?: string): DocumentedCommand {
    return new DocumentedCommand(name);
  }

  get documentation(): Documentation {
    return this.#documentation;
  }

  /** Say the rest. It is printed after the options. */
  document(documentation: Documentation): this {
    this.#documentation = documentation;
    return this.addHelpText("after", () => `\n${this.#rest([])}`);
  }

  /** Print the help, and the details that `--help` leaves out. */
  outputManual(): void {
    const { details = [] } = this.#documentation;
    const { writeOut } = this.configureOutput();
    writeOut?.(`${this.helpInformation()}\n${this.#rest(details)}\n`);
  }

  #rest(details: readonly Paragraph[]): string {
    const { notes = [], exitStatus, examples } = this.#documentation;
    const parts = [...notes, ...details].map((paragraph) => this.#fill(paragraph));
    if (exitStatus !== undefined) {
      const rows = exitStatus.map(
        ([status, meaning]) => `  ${String(status).padEnd(3)} ${meaning}`,
      );
      parts.push(["Exit status:", ...rows].join("\n"));
    }
    const title = examples.length > 1 ? "Examples:" : "Example:";
    parts.push([title, ...examples.map(([, line]) => `  ${line}`)].join("\n"));
    return parts.join("\n\n");
  }

  #fill(paragraph: Paragraph): string {
    if (typeof paragraph !== "string") return paragraph.lines;
    const width = this.configureOutput().getOutHelpWidth?.() ?? WIDTH_DEFAULT;
    return this.createHelp().boxWrap(paragraph, width);
  }
}

/** An option that has more to say than fits into `--help`. */
export class DocumentedOption extends Option {
  #manual: string | undefined;

  /** What the man page says; without it, what the help does. */
  get manual(): string {
    return this.#manual ?? this.description;
  }

  inManual(text: string): this {
    this.#manual = text;
    return this;
  }
}
