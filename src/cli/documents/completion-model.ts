/** What a shell can complete: commands, options, and what their values are. */

import type { Option } from "commander";
import type { DocumentedCommand } from "../documented-command.ts";
import { TOPICS } from "../help-topics.ts";

/** What is completed: one of some words, a path, a mount of ours, or nothing. */
export type Completion = readonly string[] | "file" | "directory" | "mount" | "nothing";

export interface CompletedOption {
  /** With their dashes. */
  readonly short: string | undefined;
  readonly long: string | undefined;
  readonly description: string;
  /** undefined: it takes none. */
  readonly value: CompletedValue | undefined;
}

export interface CompletedValue {
  readonly name: string;
  /** It may be left out, and follows `=` if it is there. */
  readonly isOptional: boolean;
  readonly completion: Completion;
}

export interface CompletedCommand {
  readonly name: string;
  readonly summary: string;
  readonly options: readonly CompletedOption[];
  /** Of every argument. */
  readonly argument: Completion;
}

export interface CompletedProgram {
  readonly options: readonly CompletedOption[];
  readonly commands: readonly CompletedCommand[];
}

/** By the name that the help gives to an argument or to a value; others cannot be completed. */
const BY_NAME: Readonly<Record<string, Completion>> = {
  ...{ file: "file", files: "file", image: "file", first: "file", second: "file" },
  ...{ operands: "file", "device-or-image": "file" },
  dir: "directory",
  mountpoint: "mount",
};

export function completedProgram(program: DocumentedCommand): CompletedProgram {
  const commands = program.documentedCommands;
  const topics = [...commands.map((command) => command.name()), ...TOPICS];
  return {
    options: completedOptions(program),
    commands: commands.map((command) => ({
      name: command.name(),
      summary: command.summary(),
      options: completedOptions(command),
      argument: command.name() === "help" ? topics : argumentOf(command),
    })),
  };
}

function argumentOf(command: DocumentedCommand): Completion {
  const [first] = command.registeredArguments;
  return (first && BY_NAME[first.name()]) ?? "nothing";
}

function completedOptions(command: DocumentedCommand): CompletedOption[] {
  return command.createHelp().visibleOptions(command).map(completedOption);
}

function completedOption(option: Option): CompletedOption {
  const { short, long, description, argChoices } = option;
  const name = /[<[]([^>\]]+)[>\]]/.exec(option.flags)?.[1];
  const completion = argChoices ?? BY_NAME[name ?? ""] ?? "nothing";
  const value = name === undefined ? undefined : { name, isOptional: option.optional, completion };
  return { short, long, description, value };
}

/** A text between single quotes, for sh, zsh and fish, which all end it in the same way. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
