/** `tsimgfs help`: all that there is to say of a command, and of what commands have in common. */

import { UsageError } from "../errors.ts";
import { COMMANDS, type CommandGroup } from "./command-table.ts";
import type { ExitStatus } from "./documentation.ts";
import type { DocumentedCommand } from "./documented-command.ts";
import { print } from "./print.ts";

/** Of all commands, where they say nothing else. */
export const EXIT_STATUS: readonly ExitStatus[] = [
  [0, "it is done"],
  [1, "it could not be done; a line on standard error says why"],
  [129, "SIGHUP has stopped it"],
  [130, "SIGINT (Ctrl-C) has stopped it"],
  [131, "SIGQUIT has stopped it"],
  [143, "SIGTERM has stopped it"],
];

const SPECIAL_STATUS = `check and compare have more; tsimgfs help check and help compare list them.
mount --foreground, and top on a terminal, are there to be ended by a signal:
with 0.
`;

/** Variable and meaning. */
export const ENVIRONMENT: readonly (readonly [name: string, meaning: string])[] = [
  ["TSIMGFS_SECRET", "the passphrase of encrypted images, where --secret says none"],
  ["NO_COLOR", "set to anything: no colours, also on a terminal"],
  ["DEBUG", "tsimgfs:*: tell all steps and every FUSE request, on standard error"],
];

/** Topics that are no commands. */
export const TOPICS = ["exit-status", "environment"] as const;
type Topic = (typeof TOPICS)[number];

const TEXTS: Readonly<Record<Topic, () => string>> = {
  "exit-status": exitStatusText,
  environment: () => rows(ENVIRONMENT),
};

export function defineHelp(command: DocumentedCommand, program: DocumentedCommand): void {
  const group: CommandGroup = "Other:";
  command
    .summary("explain a command, or a topic, in full")
    .helpGroup(group)
    .minor()
    .description(`Explain a command in full, or one of: ${TOPICS.join(", ")}.`)
    .argument("[topic]", "a command or a topic; without it: all commands that there are")
    .document({
      examples: [
        ["All about mount", "tsimgfs help mount"],
        ["What exit statuses mean", "tsimgfs help exit-status"],
      ],
    })
    .action((topic: string | undefined) => help(topic, program));
}

function help(topic: string | undefined, program: DocumentedCommand): void {
  const command = program.documentedCommands.find((candidate) => candidate.name() === topic);
  const other = TOPICS.find((name) => name === topic);
  if (topic === undefined) program.outputManual();
  else if (command !== undefined) command.outputManual();
  else if (other !== undefined) print(TEXTS[other]());
  else {
    const all = [...Object.keys(COMMANDS), ...TOPICS].join(", ");
    throw new UsageError(topic, `is neither a command nor a topic; there are ${all}`);
  }
}

function exitStatusText(): string {
  return `${rows(EXIT_STATUS)}\n${SPECIAL_STATUS}`;
}

function rows(table: readonly (readonly [name: string | number, meaning: string])[]): string {
  const width = Math.max(...table.map(([name]) => String(name).length));
  return table.map(([name, meaning]) => `  ${String(name).padEnd(width)}  ${meaning}\n`).join("");
}
