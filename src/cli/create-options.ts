/** The options of `create -o`, in the names and the syntax of qemu-img. */

import { parseSize } from "../block/parse-size.ts";
import { UsageError } from "../errors.ts";

/** One row: name, kind of value, meaning. */
type OptionRow = readonly [name: string, value: string, help: string];

/** Those that we know; encryption and hints to the host's file system are not among them. */
// biome-ignore format: a table reads in columns
const OPTIONS = {
  raw: [
    ["preallocation",    "str",  "Preallocation mode (allowed values: off, falloc, full)"],
    ["size",             "size", "Virtual disk size"],
  ],
  qcow2: [
    ["backing_file",     "str",  "File name of a base image"],
    ["backing_fmt",      "str",  "Image format of the base image"],
    ["cluster_size",     "size", "qcow2 cluster size"],
    ["compat",           "str",  "Compatibility level (v2 [0.10] or v3 [1.1])"],
    ["compression_type", "str",  "Compression method used for image cluster compression (zlib, zstd)"],
    ["data_file",        "str",  "File name of an external data file"],
    ["data_file_raw",    "bool (on/off)", "The external data file must stay valid as a raw image"],
    ["extended_l2",      "bool (on/off)", "Extended L2 tables"],
    ["lazy_refcounts",   "bool (on/off)", "Postpone refcount updates"],
    ["preallocation",    "str",  "Preallocation mode (allowed values: off, metadata, falloc, full)"],
    ["refcount_bits",    "num",  "Width of a reference count entry in bits"],
    ["size",             "size", "Virtual disk size"],
  ],
  qed: [
    ["backing_file",     "str",  "File name of a base image"],
    ["backing_fmt",      "str",  "Image format of the base image"],
    ["cluster_size",     "size", "Cluster size (in bytes)"],
    ["size",             "size", "Virtual disk size"],
    ["table_size",       "size", "L1/L2 table size (in clusters)"],
  ],
} as const satisfies Record<string, readonly OptionRow[]>;

export type CreateFormat = keyof typeof OPTIONS;
export const CREATE_FORMATS: readonly CreateFormat[] = ["raw", "qcow2", "qed"];

type OptionName = (typeof OPTIONS)[CreateFormat][number][0];

const BOOLEANS: Readonly<Record<string, boolean>> = {
  ...{ on: true, yes: true, true: true, y: true },
  ...{ off: false, no: false, false: false, n: false },
};

/** The text of `-o help`. */
export function optionsHelp(format: CreateFormat): string {
  const rows = OPTIONS[format].map(([name, value, help]) => {
    return `  ${`${name}=<${value}>`.padEnd(22)} - ${help}\n`;
  });
  return `Supported ${format} options:\n${rows.join("")}`;
}

/** Whether one of the lists asks for `-o help`. */
export function asksForHelp(lists: readonly string[]): boolean {
  return lists.flatMap(splitList).some((item) => item === "help" || item === "?");
}

/** Items of a list: commas part them, two commas are one in an item. */
function splitList(list: string): string[] {
  const items: string[] = [];
  let item = "";
  for (let at = 0; at < list.length; at++) {
    if (list[at] !== ",") item += list[at];
    else if (list[at + 1] === ",") {
      item += ",";
      at++;
    } else {
      items.push(item);
      item = "";
    }
  }
  return [...items, item];
}

/** The options of one command line: `-o NAME=VALUE,…`, where the last one counts. */
export class CreateOptions {
  readonly #texts = new Map<string, string>();

  /** @throws {UsageError} an option that the format has not, or one without a value */
  constructor(format: CreateFormat, lists: readonly string[]) {
    const known: readonly OptionRow[] = OPTIONS[format];
    for (const item of lists.flatMap(splitList)) {
      const equals = item.indexOf("=");
      const name = equals < 0 ? item : item.slice(0, equals);
      if (!known.some(([candidate]) => candidate === name)) {
        throw new UsageError("-o", `${format} has no option "${name}"; see -o help`);
      }
      if (equals < 0) throw new UsageError("-o", `${name} needs a value: ${name}=…`);
      this.#texts.set(name, item.slice(equals + 1));
    }
  }

  text(name: OptionName): string | undefined {
    return this.#texts.get(name);
  }

  bool(name: OptionName): boolean | undefined {
    return this.#parse(name, (text) => BOOLEANS[text], "on or off");
  }

  size(name: OptionName): number | undefined {
    return this.#parse(name, parseSize, "a size, such as 512, 64k or 1.5G");
  }

  number(name: OptionName): number | undefined {
    return this.#parse(name, parseNumber, "a number");
  }

  /** One of some words. */
  word<T extends string>(name: OptionName, words: readonly T[]): T | undefined {
    const find = (text: string): T | undefined => words.find((word) => word === text);
    return this.#parse(name, find, `one of ${words.join(", ")}`);
  }

  #parse<T>(
    name: OptionName,
    parse: (text: string) => T | undefined,
    wanted: string,
  ): T | undefined {
    const text = this.#texts.get(name);
    if (text === undefined) return undefined;
    const value = parse(text);
    if (value === undefined) throw new UsageError(`-o ${name}`, `${text} is not ${wanted}`);
    return value;
  }
}

function parseNumber(text: string): number | undefined {
  return /^(\d+|0[xX][\da-fA-F]+)$/.test(text) ? Number(text) : undefined;
}
