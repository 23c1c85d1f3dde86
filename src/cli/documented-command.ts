/** Commands that explain themselves: help, man pages and shell completion are made of one description. */

import { Command } from "commander";
import type { Documentation } from "./documentation.ts";
import { DocumentedOption } from "./documented-option.ts";
import { type Explained, fullHelp, screenHelp } from "./help-text.ts";

export class DocumentedCommand extends Command {
  #documentation: Documentation = { examples: [] };
  #isMinor = false;

  /** The commands of a program, all of which are documented ones. */
  get documentedCommands(): readonly DocumentedCommand[] {
    return this.commands.filter((command) => command instanceof DocumentedCommand);
  }

  get documentedOptions(): readonly DocumentedOption[] {
    return this.options.filter((option) => option instanceof DocumentedOption);
  }

  override createCommand(name?: string): DocumentedCommand {
    return new DocumentedCommand(name);
  }

  override createOption(flags: string, description?: string): DocumentedOption {
    return new DocumentedOption(flags, description);
  }

  get documentation(): Documentation {
    return this.#documentation;
  }

  /** Whether the `--help` of its program only names it. */
  get isMinor(): boolean {
    return this.#isMinor;
  }

  /** Say that it is none for every day. */
  minor(): this {
    this.#isMinor = true;
    return this;
  }

  /** Say the rest. */
  document(documentation: Documentation): this {
    this.#documentation = documentation;
    return this;
  }

  /** The text of `--help`. */
  override helpInformation(): string {
    return screenHelp(this.#explained());
  }

  /** Print all that there is to say. */
  outputManual(): void {
    this.configureOutput().writeOut?.(fullHelp(this.#explained()));
  }

  #explained(): Explained {
    const width = this.configureOutput().getOutHelpWidth?.();
    return { command: this, documentation: this.#documentation, width };
  }
}
