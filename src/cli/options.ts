/** Options that several commands share, and the parsing of their values. */

import { Option } from "commander";
import { BACKING_POLICIES, type BackingPolicy } from "../block/referenced-file.ts";
import { UsageError } from "../errors.ts";
import { FORMAT_NAMES, type FormatName } from "../formats/driver.ts";

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
export function formatOption(flags: string): Option {
  return new Option(flags, "the image's format, without probing: raw, qcow2 or qed").argParser(
    oneOf<FormatName>("--format", FORMAT_NAMES),
  );
}

export function outputOption(): Option {
  return new Option("--output <form>", "human or json")
    .default("human")
    .argParser(oneOf<Output>("--output", OUTPUTS));
}

export function forceShareOption(): Option {
  return new Option("-U, --force-share", "open it even if somebody may be writing to it");
}

export function backingPolicyOption(): Option {
  return new Option(
    "--backing-policy <policy>",
    "which files an image may refer to: any, same-directory or none (default: any for your own images and for root, else same-directory)",
  ).argParser(oneOf<BackingPolicy>("--backing-policy", BACKING_POLICIES));
}

const CACHE_MODES = ["none", "writeback", "unsafe", "directsync", "writethrough"] as const;

/**
 * `-t` or `-T` of qemu-img: taken, and without effect. Files are read and written through the host's page
 * cache, and what a command has written is durable when it ends.
 */
export function cacheOption(flags: string, of: "source" | "target"): Option {
  return new Option(
    flags,
    `cache mode of the ${of}, as qemu-img takes it; the page cache is used in any case`,
  ).argParser(oneOf(flags.slice(0, 2), CACHE_MODES));
}
