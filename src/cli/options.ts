/** Options that several commands share, and the parsing of their values. */

import { BACKING_POLICIES } from "../block/referenced-file.ts";
import { UsageError } from "../errors.ts";
import { FORMAT_NAMES, type FormatName } from "../formats/driver.ts";
import { DocumentedOption } from "./documented-command.ts";

const OUTPUTS = ["human", "json"] as const;
export type Output = (typeof OUTPUTS)[number];

/** An option's value that must be one of a few words. */
export function oneOf<T extends string>(option: string, words: readonly T[]): (text: string) => T {
  return (text) => {
    const word = words.find((candidate) => candidate === text);
    if (word !== undefined) return word;
    throw new UsageError(option, `${text} is not one of ${words.join(", ")}`);
  };
}

/** `a, b or c`. */
function alternatives(words: readonly string[]): string {
  const [last = "", ...others] = [...words].reverse();
  return others.length === 0 ? last : `${others.reverse().join(", ")} or ${last}`;
}

/**
 * An option whose value is one of a few words, which completion offers.
 *
 * @param flags such as "-O, --output-format <name>"; messages name it as it begins
 * @param describe the help; `words` is all of them, as a person lists them
 */
export function choiceOption<T extends string>(
  flags: string,
  words: readonly T[],
  describe: (words: string) => string,
): DocumentedOption {
  const [name = flags] = flags.split(/[ ,]/);
  const option = new DocumentedOption(flags, describe(alternatives(words)));
  option.choices(words);
  option.argParser(oneOf(name, words));
  return option;
}

/** A size with an optional suffix k, M, G or T, in bytes. */
export function sizeOption(option: string): (text: string) => number {
  return (text) => {
    const match = /^(\d+)([bkKMGTP]?)$/.exec(text);
    const exponent = "bkmgtp".indexOf((match?.[2] ?? "").toLowerCase() || "b");
    const size = match === null ? Number.NaN : Number(match[1]) * 1024 ** exponent;
    if (Number.isSafeInteger(size)) return size;
    throw new UsageError(option, `${text} is not a size, such as 512, 64k or 10G`);
  };
}

/** As `sizeOption`: bytes a second, more than none. */
export function rateOption(option: string): (text: string) => number {
  const parse = sizeOption(option);
  return (text) => {
    const rate = parse(text);
    if (rate > 0) return rate;
    throw new UsageError(option, `${text} is not a rate, such as 512k or 20M`);
  };
}

/** A whole number within a range. */
export function numberOption(option: string, min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    throw new UsageError(option, `${text} is not a number in ${min}..${max}`);
  };
}

/** `--format`, with `flags` such as "-f, --format <name>". */
export function formatOption(flags: string): DocumentedOption {
  return choiceOption(flags, FORMAT_NAMES, (names) => `${names}; default: it is probed`)
    .argParser(oneOf<FormatName>("--format", FORMAT_NAMES))
    .inManual(
      "The format of the image, which is not looked for in the image itself then. Say raw of an image that others write to: what they write may look like another format.",
    );
}

export function outputOption(): DocumentedOption {
  return choiceOption("--output <form>", OUTPUTS, (forms) => forms).default("human");
}

export function forceShareOption(): DocumentedOption {
  return new DocumentedOption("-U, --force-share", "open it even if somebody may be writing to it");
}

export function backingPolicyOption(): DocumentedOption {
  return choiceOption(
    "--backing-policy <policy>",
    BACKING_POLICIES,
    (policies) => `files it may refer to: ${policies}`,
  ).inManual(
    "Which files an image may name as its backing file or data file: any; those in the same directory; or none. Default: any for root and for images that belong to you, else same-directory.",
  );
}

export function progressOption(): DocumentedOption {
  return new DocumentedOption("-p, --progress", "show a progress bar on a terminal");
}

const CACHE_MODES = ["none", "writeback", "unsafe", "directsync", "writethrough"] as const;

/**
 * `-t` or `-T` of qemu-img: taken, and without effect. Files are read and written through the host's page
 * cache, and what a command has written is durable when it ends.
 */
export function cacheOption(flags: string, of: "source" | "target"): DocumentedOption {
  return choiceOption(flags, CACHE_MODES, () => `cache mode of the ${of}: taken, and ignored`)
    .argParser(oneOf(flags.slice(0, 2), CACHE_MODES))
    .inManual(
      `The cache mode of the ${of}, as qemu-img takes it. It has no effect: the page cache is used, and what was written is durable when the command ends.`,
    );
}

/** `-o`: may be repeated; all lists are kept, in their order. */
export function collect(value: string, all: readonly string[] = []): readonly string[] {
  return [...all, value];
}

/** @param modes as a person lists them */
export function discardHelp(modes: string): string {
  return `${modes}: whether space that is not needed goes back to the host`;
}

/** @param modes as a person lists them */
export function detectZeroesHelp(modes: string): string {
  return `${modes}: whether written zeros become zero clusters`;
}
