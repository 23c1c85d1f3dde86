/** Man pages, in the macros of man(7), out of the commands as --help has them. */

import type { Argument, Option } from "commander";
import type { ExitStatus, Paragraph } from "../documentation.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { manualText } from "../documented-option.ts";
import { pageName } from "../help-text.ts";
import { ENVIRONMENT, EXIT_STATUS } from "../help-topics.ts";

/** The longest line of text, bytes: mandoc(1) complains of more than 80. */
const LINE_MAX = 76;

/** What all pages have at their head. */
export interface Edition {
  /** `YYYY-MM-DD`. */
  readonly date: string;
  readonly version: string;
}

/** The page of a command, or of the whole program. */
export function manPage(command: DocumentedCommand, { date, version }: Edition): string {
  const name = pageName(command);
  const isProgram = command.parent === null;
  const { notes = [], details = [] } = command.documentation;
  const summary = isProgram ? "show disk images as flat raw devices" : command.summary();
  return [
    `.TH ${name.toUpperCase()} 1 ${date} "tsimgfs ${version}" "User Commands"`,
    ".SH NAME",
    `${escaped(name)} \\- ${escaped(summary)}`,
    ".SH SYNOPSIS",
    synopsis(command),
    ".SH DESCRIPTION",
    fill(command.description()),
    ...argumentList(command),
    ...[...notes, ...details].flatMap(paragraph),
    ...(isProgram ? commandList(command) : []),
    ".SH OPTIONS",
    ...command.createHelp().visibleOptions(command).flatMap(optionItem),
    ...(isProgram ? environment() : []),
    ".SH EXIT STATUS",
    ...exitStatus(command.documentation.exitStatus).flatMap(statusItem),
    ".SH EXAMPLES",
    ...command.documentation.examples.flatMap(([purpose, line], index) => [
      ...(index === 0 ? [] : [".PP"]),
      fill(`${purpose}:`),
      ...verbatim([line]),
    ]),
    ".SH SEE ALSO",
    seeAlso(command),
    "",
  ].join("\n");
}

/** Text that troff shows as it is. */
function escaped(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("'", "\\(aq")
    .replaceAll("`", "\\(ga")
    .replaceAll("^", "\\(ha")
    .replaceAll("~", "\\(ti")
    .replace(/^\./, "\\&.");
}

/** Text that is filled: on lines of its own, each sentence on a new one. */
function fill(text: string): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/).map(escaped)) {
    const isNew = /[.:;]$/.test(line) || line.length + word.length >= LINE_MAX;
    if (isNew && line !== "") {
      lines.push(line);
      line = "";
    }
    line += line === "" ? word : ` ${word}`;
  }
  return [...lines, line].join("\n");
}

function paragraph(text: Paragraph): string[] {
  return typeof text === "string" ? [".PP", fill(text)] : table(text.lines);
}

/** Lines of a table as they are; too long ones are cut at a blank, and go on further in. */
function table(text: string): string[] {
  return verbatim(text.split("\n").flatMap((line) => cut(line.replace(/^ {2}/, ""))));
}

/** Lines as they are. */
function verbatim(lines: readonly string[]): string[] {
  return [".PP", ".RS 4", ".nf", ...lines.map(verbatimLine), ".fi", ".RE"];
}

/** What is too long for a line of the page's text goes on behind an escaped newline, which is not shown. */
function verbatimLine(line: string): string {
  if (line === "") return ".sp";
  return (escaped(line).match(/.{1,70}( |$)|.+/g) ?? []).join("\\\n");
}

function cut(line: string): string[] {
  const length = LINE_MAX - 8;
  if (line.length <= length) return [line];
  const at = line.lastIndexOf(" ", length);
  if (line.slice(0, at).trim() === "") return [line];
  return [line.slice(0, at), ...cut(`      ${line.slice(at + 1).trimStart()}`)];
}

const bold = (text: string): string => `\\fB${escaped(text)}\\fR`;
const italic = (text: string): string => `\\fI${escaped(text)}\\fR`;

/** `<name>` in italics; all else as it is. */
function placeholders(text: string): string {
  return text
    .split(/<([^>]+)>/)
    .map((part, index) => (index % 2 === 1 ? italic(part) : escaped(part)))
    .join("");
}

function synopsis(command: DocumentedCommand): string {
  const name =
    command.parent === null ? command.name() : `${command.parent.name()} ${command.name()}`;
  return `${bold(name)} ${placeholders(command.usage())}`;
}

function argumentList(command: DocumentedCommand): string[] {
  const described = command.registeredArguments.filter(({ description }) => description !== "");
  return described.flatMap((argument: Argument) => [
    ".TP",
    italic(argument.name()),
    fill(argument.description),
  ]);
}

function commandList(program: DocumentedCommand): string[] {
  const commands = program.documentedCommands;
  const items = commands.flatMap((command, index) => {
    const group = command.helpGroup();
    const isNew = group !== commands[index - 1]?.helpGroup();
    return [
      ...(isNew ? [`.SS ${escaped(group.replace(/:$/, ""))}`] : []),
      ".TP",
      `.BR ${escaped(pageName(command))} (1)`,
      fill(command.summary()),
    ];
  });
  return [".SH COMMANDS", ...items];
}

function optionItem(option: Option): string[] {
  const [, names = option.flags, open = "", value = ""] =
    /^(.*?)(?: ([<[])([^>\]]+)[>\]])?$/.exec(option.flags) ?? [];
  const flags = names.split(", ").map(bold).join(", ");
  const operand = open === "[" ? `[=${italic(value)}]` : ` ${italic(value)}`;
  return [".TP", value === "" ? flags : `${flags}${operand}`, fill(manualText(option))];
}

/** Signals stop every command. */
function exitStatus(own: readonly ExitStatus[] | undefined): readonly ExitStatus[] {
  if (own === undefined) return EXIT_STATUS;
  return [...own, ...EXIT_STATUS.filter(([status]) => status > 128)];
}

function statusItem([status, meaning]: ExitStatus): string[] {
  return [".TP", bold(String(status)), fill(meaning)];
}

function environment(): string[] {
  const items = ENVIRONMENT.flatMap(([name, meaning]) => [".TP", bold(name), fill(meaning)]);
  return [".SH ENVIRONMENT", ...items];
}

function seeAlso(command: DocumentedCommand): string {
  const { seeAlso: pages = [] } = command.documentation;
  const all = pages.map((page) => (page.includes("(") ? page : `tsimgfs-${page}(1)`));
  const references = command.parent === null ? all : ["tsimgfs(1)", ...all];
  return references
    .map((page, index) => {
      const [, name = page, section = "1"] = /^(.*)\((\d)\)$/.exec(page) ?? [];
      const end = index < references.length - 1 ? "," : "";
      return `.BR ${escaped(name)} (${section})${end}`;
    })
    .join("\n");
}
