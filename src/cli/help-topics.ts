/** `tsimgfs help`: all that there is to say of a command, and of what commands have in common. */

import { UsageError } from "../errors.ts";
import { nearestWord } from "../nearest-word.ts";
import { COMMANDS, type CommandGroup } from "./command-table.ts";
import type { ExitStatus } from "./documentation.ts";
import type { DocumentedCommand } from "./documented-command.ts";
import { print } from "./print.ts";

/** Of all commands, where they say nothing else. */
export const EXIT_STATUS: readonly ExitStatus[] = [
  [0, "success"],
  [1, "failure; a line on standard error says why"],
  [129, "stopped by SIGHUP"],
  [130, "stopped by SIGINT (Ctrl-C)"],
  [131, "stopped by SIGQUIT"],
  [143, "stopped by SIGTERM"],
];

const SPECIAL_STATUS = `check and compare have more: see tsimgfs help check and tsimgfs help compare.
mount --foreground, and top on a terminal, return 0 when a signal ends them,
since that is how they normally end.
`;

/** Variable and meaning. */
export const ENVIRONMENT: readonly (readonly [name: string, meaning: string])[] = [
  ["TSIMGFS_SECRET", "passphrase of encrypted images, unless --secret is given"],
  ["NO_COLOR", "set to any value: no colours, not even on a terminal"],
  ["DEBUG", "tsimgfs:* traces every step and FUSE request on standard error"],
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
    .summary("explain a command or a topic in full")
    .helpGroup(group)
    .minor()
    .description(`Explain a command in full, or one of the topics ${TOPICS.join(" and ")}.`)
    .argument("[topic]", "a command or a topic; without it, all commands are listed")
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
    const all = [...Object.keys(COMMANDS), ...TOPICS];
    const meant = nearestWord(topic, all);
    const advice = meant === undefined ? "" : `did you mean ${meant}? `;
    const reason = `is neither a command nor a topic; ${advice}there are ${all.join(", ")}`;
    throw new UsageError(topic, reason);
  }
}

function exitStatusText(): string {
  return `${rows(EXIT_STATUS)}\n${SPECIAL_STATUS}`;
}

function rows(table: readonly (readonly [name: string | number, meaning: string])[]): string {
  const width = Math.max(...table.map(([name]) => String(name).length));
  return table.map(([name, meaning]) => `  ${String(name).padEnd(width)}  ${meaning}\n`).join("");
}
