/** The text of `--help`, which fits a screen, and of `tsimgfs help`, which says all. */

import { type Argument, type Command, Help, type Option } from "commander";
import type { Documentation, Paragraph } from "./documentation.ts";
import { briefText, manualText } from "./documented-option.ts";

/** A screen, and what a terminal is taken for that nobody knows the width of. */
const SCREEN = { lines: 24, columns: 80 } as const;
/** The prompt that follows is on the screen, too. */
const LINES_MAX = SCREEN.lines - 1;
const INDENT = "  ";

/** What is said of a command, or of the program. */
export interface Explained {
  readonly command: Command;
  readonly documentation: Documentation;
  /** Columns of the terminal; undefined: nobody knows. */
  readonly width: number | undefined;
}

/** `tsimgfs`, `tsimgfs-mount`. */
export function pageName(command: Command): string {
  return command.parent === null ? command.name() : `${command.parent.name()}-${command.name()}`;
}

/** All options, with all that there is to say of them. */
class FullHelp extends Help {
  override optionDescription(option: Option): string {
    return manualText(option);
  }

  override visibleArguments(command: Command): Argument[] {
    return command.registeredArguments.filter(({ description }) => description !== "");
  }

  /** As in the man page: without the `=`, what follows would be taken for the value, or the value for an image. */
  override optionTerm(option: Option): string {
    return option.flags.replace(" [", "[=");
  }

  /** What a command takes, its own help says. */
  override subcommandTerm(command: Command): string {
    return command.name();
  }
}

/** All options, each on a line or two. */
class BriefHelp extends FullHelp {
  override optionDescription(option: Option): string {
    return briefText(option);
  }
}

/** What is needed every day. */
class EverydayHelp extends BriefHelp {
  override visibleOptions(command: Command): Option[] {
    return super.visibleOptions(command).filter(isEveryday);
  }

  override visibleCommands(command: Command): Command[] {
    return super.visibleCommands(command).filter(isEveryday);
  }

  /** One list: groups take a line or two each. */
  override groupItems<T extends Command | Option>(
    _all: T[],
    visible: T[],
    _getGroup: (item: T) => string,
  ): Map<string, T[]> {
    const [first] = visible;
    const heading = first !== undefined && "flags" in first ? "Options:" : "Commands:";
    return new Map([[heading, visible]]);
  }
}

function isEveryday(item: Command | Option): boolean {
  return !("isMinor" in item && item.isMinor === true);
}

/**
 * What `--help` prints: on a screen of 80 columns there is room for it, and for the prompt. Where that takes it, minor
 * options and commands are only named. Which ones does not depend on the terminal.
 */
export function screenHelp(explained: Explained): string {
  const whole = screenText({ ...explained, width: SCREEN.columns }, new BriefHelp());
  const fits = whole.trimEnd().split("\n").length <= LINES_MAX;
  return screenText(explained, fits ? new BriefHelp() : new EverydayHelp());
}

/** What `tsimgfs help` prints. */
export function fullHelp({ command, documentation, width }: Explained): string {
  const help = prepared(new FullHelp(), width);
  const { notes = [], details = [] } = documentation;
  const rest = restOf(documentation, [...notes, ...details], help);
  return `${help.formatHelp(command, help)}\n${rest}\n`;
}

function prepared(help: Help, width: number | undefined): Help {
  help.prepareContext({ helpWidth: width ?? SCREEN.columns });
  return help;
}

function screenText({ command, documentation, width }: Explained, unprepared: Help): string {
  const help = prepared(unprepared, width);
  const rest = restOf(documentation, documentation.notes ?? [], help);
  const pointers = [...leftOut(command, help), pointer(command)];
  return `${help.formatHelp(command, help)}\n${rest}\n\n${pointers.join("\n")}\n`;
}

/** What follows the lists: paragraphs, exit statuses, examples. */
function restOf(
  { exitStatus, examples }: Documentation,
  paragraphs: readonly Paragraph[],
  help: Help,
): string {
  const parts = paragraphs.map((paragraph) =>
    typeof paragraph === "string"
      ? help.boxWrap(paragraph, help.helpWidth ?? SCREEN.columns)
      : paragraph.lines,
  );
  if (exitStatus !== undefined) {
    const rows = exitStatus.map(([status, meaning]) => `  ${String(status).padEnd(3)} ${meaning}`);
    parts.push(["Exit status:", ...rows].join("\n"));
  }
  const title = examples.length > 1 ? "Examples:" : "Example:";
  parts.push([title, ...examples.map(([, line]) => `${INDENT}${line}`)].join("\n"));
  return parts.join("\n\n");
}

/** The names of what a help does not list. */
function leftOut(command: Command, help: Help): string[] {
  const all = new Help();
  const commands = without(all.visibleCommands(command), help.visibleCommands(command));
  const options = without(all.visibleOptions(command), help.visibleOptions(command));
  return [
    ...names(
      "More commands",
      commands.map((item) => item.name()),
      help,
    ),
    ...names(
      "More options",
      options.map(({ long, short, flags }) => long ?? short ?? flags),
      help,
    ),
  ];
}

function without<T>(all: readonly T[], listed: readonly T[]): T[] {
  return all.filter((item) => !listed.includes(item));
}

function names(title: string, words: readonly string[], help: Help): string[] {
  if (words.length === 0) return [];
  const width = (help.helpWidth ?? SCREEN.columns) - INDENT.length;
  const text = help.boxWrap(`${title}: ${words.join(", ")}`, width);
  return [text.replaceAll("\n", `\n${INDENT}`)];
}

/** Where all is said. */
function pointer(command: Command): string {
  const page = `man ${pageName(command)}`;
  const program = command.parent;
  if (program !== null) return `In full: ${program.name()} help ${command.name()}, or ${page}`;
  const name = command.name();
  return `In full: ${name} help, or ${page}. Of a command: ${name} COMMAND --help`;
}
