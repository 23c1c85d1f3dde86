/** What a command of `io` is, and the parsing of its options as getopt(3) does it. */

import type { Disk } from "../../block/disk.ts";
import type { Discard } from "../../block/write-policy.ts";
import type { FormatName } from "../../formats/driver.ts";
import { IoFailure } from "./failure.ts";

/** What commands work on. */
export interface IoContext {
  readonly path: string;
  /** As the user stated it. */
  readonly format: FormatName | undefined;
  readonly disk: Disk;
  readonly discard: Discard;
}

/** The words of a command line: the command as it was typed, and what follows. */
export interface IoCall {
  readonly name: string;
  readonly words: readonly string[];
}

export interface IoCommand {
  readonly name: string;
  readonly alias?: string;
  /** How many words follow at least, and at most. */
  readonly words: readonly [min: number, max: number];
  /** The arguments, for people. */
  readonly usage?: string;
  readonly summary: string;
  /** Lines of `help COMMAND`, below the summary. */
  readonly help?: readonly string[];
  /** It changes the disk. */
  readonly writes?: boolean;
  /** @throws {TsimgfsError} an IoFailure says all; of others, the session tells the reason */
  readonly run: (io: IoContext, call: IoCall) => void | Promise<void>;
}

/** `NAME ARGUMENTS -- SUMMARY`. */
export function usageLine(command: IoCommand, name = command.name): string {
  const usage = command.usage === undefined ? "" : `${command.usage} `;
  return `${name} ${usage}-- ${command.summary}`;
}

/**
 * Take options apart: they may stand before, between and after the other words, and be joined; `--`
 * ends them.
 *
 * @param letters of the options; one that takes a value is followed by a colon
 * @param take called for each option in turn; the value is empty where there is none
 * @returns the other words
 * @throws {IoFailure} an option that does not exist, or lacks its value
 */
export function parseOptions(
  command: IoCommand,
  { name, words }: IoCall,
  letters: string,
  take: (letter: string, value: string) => void,
): string[] {
  const operands: string[] = [];
  const left = [...words];
  for (let word = left.shift(); word !== undefined; word = left.shift()) {
    if (word === "--") return [...operands, ...left];
    if (!word.startsWith("-") || word === "-") {
      operands.push(word);
      continue;
    }
    for (let rest = word.slice(1); rest !== ""; ) {
      const letter = rest.charAt(0);
      rest = rest.slice(1);
      const kind = kindOf(letters, letter);
      if (kind === undefined) throw badOption(command, `${name}: invalid option -- '${letter}'`);
      if (kind === "flag") {
        take(letter, "");
        continue;
      }
      const value = rest === "" ? left.shift() : rest;
      if (value === undefined) {
        throw badOption(command, `${name}: option requires an argument -- '${letter}'`);
      }
      take(letter, value);
      rest = "";
    }
  }
  return operands;
}

function kindOf(letters: string, letter: string): "flag" | "value" | undefined {
  const place = letter === ":" ? -1 : letters.indexOf(letter);
  if (place < 0) return undefined;
  return letters.charAt(place + 1) === ":" ? "value" : "flag";
}

function badOption(command: IoCommand, reason: string): IoFailure {
  return new IoFailure({ errors: reason, output: usageLine(command) });
}

/** The command is used in another way. */
export function usageFailure(command: IoCommand): IoFailure {
  return new IoFailure({ output: usageLine(command) });
}
