/** The commands of `io` by name, and `help` about them. */

import { print } from "../print.ts";
import { ALLOC_COMMAND, MAP_COMMAND } from "./allocation-commands.ts";
import { type IoCall, type IoCommand, type IoContext, usageLine } from "./command.ts";
import { DISCARD_COMMAND } from "./discard-command.ts";
import { IoFailure } from "./failure.ts";
import { FLUSH_COMMAND, INFO_COMMAND, LENGTH_COMMAND, TRUNCATE_COMMAND } from "./image-commands.ts";
import { READ_COMMAND } from "./read-command.ts";
import { SLEEP_COMMAND } from "./sleep-command.ts";
import { WRITE_COMMAND } from "./write-command.ts";

const HELP_COMMAND: IoCommand = {
  name: "help",
  alias: "?",
  words: [0, 1],
  usage: "[command]",
  summary: "help for one or all commands",
  run: showHelp,
};

/** It ends the session, which knows it by its name. */
export const QUIT_COMMAND: IoCommand = {
  name: "quit",
  alias: "q",
  words: [0, Number.POSITIVE_INFINITY],
  summary: "exit the program",
  run: () => undefined,
};

/** In the order of their names. */
export const COMMANDS: readonly IoCommand[] = [
  ALLOC_COMMAND,
  DISCARD_COMMAND,
  FLUSH_COMMAND,
  HELP_COMMAND,
  INFO_COMMAND,
  LENGTH_COMMAND,
  MAP_COMMAND,
  QUIT_COMMAND,
  READ_COMMAND,
  SLEEP_COMMAND,
  TRUNCATE_COMMAND,
  WRITE_COMMAND,
];

/** The command with a name or an alias. */
export function findCommand(name: string): IoCommand | undefined {
  return COMMANDS.find((command) => command.name === name || command.alias === name);
}

function showHelp(_io: IoContext, { words: [name] }: IoCall): void {
  if (name === undefined) {
    const lines = COMMANDS.map((command) => usageLine(command));
    print(`${lines.join("\n")}\n\nUse 'help commandname' for extended help.\n`);
    return;
  }
  const command = findCommand(name);
  if (command === undefined) throw new IoFailure({ output: `command ${name} not found` });
  const help = command.help === undefined ? "" : `\n${command.help.map(indented).join("\n")}\n\n`;
  print(`${usageLine(command, name)}\n${help}`);
}

function indented(line: string): string {
  return line === "" ? "" : ` ${line}`;
}
