/** The command line: the command that is chosen, what all have in common, and how a failure is told. */

import { createRequire } from "node:module";
import { CommanderError } from "commander";
import type { PendingDaemon } from "../daemon/launch.ts";
import { printable, TsimgfsError, UsageError } from "../errors.ts";
import { openReason } from "../storage/open-reason.ts";
import { nodeErrorCode } from "../syscalls/errno-names.ts";
import { traceSteps } from "../trace.ts";
import { refuseBrokenArguments } from "./argument-bytes.ts";
import { COMMANDS } from "./command-table.ts";
import { DocumentedCommand } from "./documented-command.ts";
import { DocumentedOption } from "./documented-option.ts";
import { defineHelp, TOPICS } from "./help-topics.ts";
import { beQuiet, print, printMessage } from "./print.ts";
import { forgetSecrets } from "./secrets.ts";
import { tellCodeCache } from "./tell-code-cache.ts";

function packageVersion(): string {
  const description: { version: string } = createRequire(import.meta.url)("../../package.json");
  return description.version;
}

/** Options whose value may be left out have it after `=`: else they would take what follows, an image. */
const OPTIONAL_VALUES: readonly string[] = ["--stream"];

interface CommonOptions {
  readonly verbose?: boolean;
  readonly quiet?: boolean;
}

/** Errors and help go through us: one line, `tsimgfs: REASON`. */
function configure(command: DocumentedCommand): DocumentedCommand {
  return command
    .addHelpOption(new DocumentedOption("-h, --help", "show this help").minor())
    .exitOverride()
    .configureOutput({
      writeOut: print,
      writeErr: () => undefined,
      outputError: () => undefined,
    });
}

/** Options that every command has, and that may as well precede its name. */
function addCommonOptions(command: DocumentedCommand): void {
  command.addOption(
    new DocumentedOption("-v, --verbose", "report each step on standard error").minor(),
  );
  if (command.options.some(({ long }) => long === "--quiet")) return;
  command.addOption(new DocumentedOption("-q, --quiet", "print only results and errors").minor());
}

function applyCommonOptions(command: DocumentedCommand): void {
  const { verbose = false, quiet = false }: CommonOptions = command.optsWithGlobals();
  if (verbose) {
    traceSteps();
    tellCodeCache();
  }
  if (!quiet) return;
  beQuiet();
  command.setOptionValue("quiet", true);
}

/**
 * The program with its commands.
 *
 * @param isWanted which commands are defined, and not only named
 * @param daemon a process that was started already, if mount is likely to need it
 */
export async function buildProgram(
  isWanted: (name: string) => boolean,
  daemon: PendingDaemon | undefined,
): Promise<DocumentedCommand> {
  const program = configure(new DocumentedCommand("tsimgfs"))
    .description("Show qcow2, QED and raw disk images as flat raw devices.")
    .version(packageVersion(), "-V, --version", "print the version")
    .enablePositionalOptions()
    .helpCommand(false)
    .document({
      details: [`tsimgfs help also explains the topics ${TOPICS.join(" and ")}.`],
      examples: [
        ["Mount an image", "tsimgfs mount vm.qcow2 /mnt/images"],
        ["Unmount it", "tsimgfs umount /mnt/images"],
      ],
      seeAlso: ["qemu-img(1)", "fusermount3(1)", "fuse(4)"],
    });
  addCommonOptions(program);
  // Its help is for the commands.
  for (const option of program.documentedOptions) option.minor();
  for (const [name, { summary, group, isMinor, load }] of Object.entries(COMMANDS)) {
    const command = configure(program.command(name)).summary(summary).helpGroup(group);
    if (isMinor) command.minor();
    if (!isWanted(name)) continue;
    (await load(daemon))(command);
    addCommonOptions(command);
    command.hook("preAction", () => applyCommonOptions(command));
  }
  const help = configure(program.command("help"));
  defineHelp(help, program);
  addCommonOptions(help);
  return program;
}

/** A last word such as -10M is a size: no option begins with a digit. */
function sizeApart(words: readonly string[]): readonly string[] {
  const last = words.at(-1);
  if (last === undefined || !/^-\d/.test(last) || words.includes("--")) return words;
  return [...words.slice(0, -1), "--", last];
}

function reasonOf(error: unknown, chosen: string | undefined): string {
  const isCommand = chosen !== undefined && Object.hasOwn(COMMANDS, chosen);
  const advice = `see tsimgfs ${isCommand ? `${chosen} ` : ""}--help`;
  if (error instanceof CommanderError) return printable(`${usageReason(error)}; ${advice}`);
  if (!(error instanceof Error)) return printable(String(error));
  const { message } = error;
  // It is about the command line as a whole.
  if (error instanceof UsageError && error.path === chosen) return `${message}; ${advice}`;
  const path = error instanceof TsimgfsError ? undefined : pathOf(error);
  if (path === undefined) return printable(message);
  return printable(`${path}: ${openReason(path, nodeErrorCode(error), error)}`);
}

/** What commander says, in our words. */
function usageReason({ message }: CommanderError): string {
  return message
    .replace(/^error: /, "")
    .replaceAll("\n", " ")
    .replace(/\. Expected (\d+) arguments? but got (\d+)\.$/, ": it takes $1, and these are $2");
}

/** The file that a call of node:fs was about. */
function pathOf(error: Error): string | undefined {
  return "syscall" in error && "path" in error ? String(error.path) : undefined;
}

/** Run the command that was chosen; the passphrases that it has read are not left in memory. */
async function parse(program: DocumentedCommand, words: readonly string[]): Promise<void> {
  try {
    await program.parseAsync(words, { from: "user" });
  } finally {
    forgetSecrets();
  }
}

/**
 * Run a command line, and set the exit status.
 *
 * @param daemon a process that was started already, if the command is likely to need it
 */
export async function runProgram(
  argv: readonly string[],
  daemon: PendingDaemon | undefined,
): Promise<void> {
  const chosen = argv.find((word) => !word.startsWith("-") && word !== "help");
  try {
    refuseBrokenArguments(argv);
    const program = await buildProgram((name) => name === chosen, daemon);
    if (argv.length === 0) program.outputHelp();
    else {
      const words = argv.map((word) => (OPTIONAL_VALUES.includes(word) ? `${word}=` : word));
      await parse(program, sizeApart(words));
    }
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) process.exit(0);
    printMessage(reasonOf(error, argv[0] === "help" ? undefined : chosen));
    process.exit(1);
  }
}
