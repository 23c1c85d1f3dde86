/** Options that several commands share, and the parsing of their values. */

import { Option } from "commander";
import { parseSize } from "../block/parse-size.ts";
import { BACKING_POLICIES } from "../block/referenced-file.ts";
import { UsageError } from "../errors.ts";
import { FORMAT_NAMES, type FormatName } from "../formats/driver.ts";
import { CACHE_MODES, type CacheMode } from "../storage/cache-mode.ts";
import { CREATE_FORMATS } from "./create-options.ts";
import { DocumentedOption } from "./documented-option.ts";

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

/** A size as qemu-img takes it, in bytes: 512, 64k, 1.5G, 0x200. */
export function sizeOption(option: string): (text: string) => number {
  return (text) => {
    const size = parseSize(option, text);
    if (size !== undefined) return size;
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

/** `-r` of qemu-img: bytes a second; 0, which is no limit, becomes infinity. */
export function rateLimitOption(): DocumentedOption {
  const parse = sizeOption("-r");
  return new DocumentedOption(
    "-r, --rate <bytes/s>",
    "copy no faster than this, such as 20M; 0: no limit",
  )
    .minor()
    .argParser((text) => parse(text) || Number.POSITIVE_INFINITY);
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
  return choiceOption(flags, FORMAT_NAMES, (names) => `${names} (default: probed)`)
    .argParser(oneOf<FormatName>("--format", FORMAT_NAMES))
    .inManual(
      `Format of the image: ${alternatives(FORMAT_NAMES)}. Default: it is probed. State raw for a raw image that others write to, because what they write may look like another format.`,
    );
}

export function outputOption(): DocumentedOption {
  return choiceOption("--output <form>", OUTPUTS, (forms) => forms).default("human");
}

export function forceShareOption(
  text = "open it even if another process may be writing to it",
): DocumentedOption {
  return new DocumentedOption("-U, --force-share", text).minor();
}

export function backingPolicyOption(): DocumentedOption {
  return choiceOption(
    "--backing-policy <policy>",
    BACKING_POLICIES,
    (policies) => `which files it may refer to: ${policies}`,
  )
    .minor()
    .inManual(
      "Which files an image may name as its backing file or data file: any; only those in the same directory; or none. Default: any for root and for your own images, otherwise same-directory.",
    );
}

/** `-q` of qemu-img, which some commands say more about. */
export function quietOption(text = "print only errors"): DocumentedOption {
  return new DocumentedOption("-q, --quiet", text).minor();
}

export function progressOption(): DocumentedOption {
  return new DocumentedOption("-p, --progress", "show a progress bar on a terminal");
}

/** A cache mode; QEMU has two words for none. */
export function parseCacheMode(option: string): (text: string) => CacheMode {
  const parse = oneOf<CacheMode>(option, CACHE_MODES);
  return (text) => (text === "off" ? "none" : parse(text));
}

/** `-t` or `-T`: how a file is read and written, as QEMU's cache modes have it. */
export function cacheOption(flags: string, of: "source" | "target" | "image"): DocumentedOption {
  return choiceOption(flags, CACHE_MODES, () => `cache mode of the ${of} (default: writeback)`)
    .argParser(parseCacheMode(flags.slice(0, 2)))
    .minor()
    .inManual(
      `Cache mode of the ${of}. writeback: use the page cache; what was written is durable when the command ends. none: bypass the page cache for whole pages (O_DIRECT). writethrough: each write is durable when it returns. directsync: none and writethrough together. unsafe: never wait for the disk; a power cut may lose or damage what was written. Default: writeback.`,
    );
}

/** `-O`: the format of what is made. */
export function outputFormatOption(): DocumentedOption {
  return choiceOption(
    "-O, --output-format <name>",
    CREATE_FORMATS,
    (names) => `output format: ${names}`,
  ).default("raw");
}

/** `-o`: options of what is made, as `create -o` has them. It may be repeated. */
export function createOptionsOption(): Option {
  return new Option(
    "-o, --options <list>",
    "output options NAME=VALUE,...; -o help lists them",
  ).argParser(collect);
}

/** `-l`: one of the snapshots of an image, as `snapshotNumber` reads it. */
export function snapshotOption(what: string): DocumentedOption {
  return new DocumentedOption(
    "-l, --snapshot <name>",
    `${what} an internal snapshot, by ID or name`,
  ).inManual(
    `${what} an internal snapshot, given by its ID or name, or as snapshot.id=ID,snapshot.name=NAME`,
  );
}

/** A format, with flags such as "-F, --backing-format <name>". */
export function namedFormatOption(flags: string, of: string): DocumentedOption {
  return choiceOption(flags, FORMAT_NAMES, (names) => `${of}: ${names}`);
}

/** `-o`: may be repeated; all lists are kept, in their order. */
export function collect(value: string, all: readonly string[] = []): readonly string[] {
  return [...all, value];
}

/** @param modes as a person lists them */
export function discardHelp(modes: string): string {
  return `${modes}: whether freed space goes back to the host`;
}

/** @param modes as a person lists them */
export function detectZeroesHelp(modes: string): string {
  return `${modes}: whether written zeros become zero clusters`;
}
