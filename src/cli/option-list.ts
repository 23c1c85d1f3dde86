/** Lists of options, `-o NAME=VALUE,…`, in the syntax of qemu-img. */

import { parseSize } from "../block/parse-size.ts";
import { UsageError } from "../errors.ts";
import { nearestWord } from "../nearest-word.ts";

/** One row: name, kind of value, meaning. */
export type OptionRow = readonly [name: string, value: string, help: string];

const BOOLEANS: Readonly<Record<string, boolean>> = {
  ...{ on: true, yes: true, true: true, y: true },
  ...{ off: false, no: false, false: false, n: false },
};

/** The rows of `-o help`. */
export function optionRowsHelp(rows: readonly OptionRow[]): string {
  return rows
    .map(([name, value, help]) => `  ${`${name}=<${value}>`.padEnd(22)} - ${help}\n`)
    .join("");
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
export class OptionList<OptionName extends string> {
  readonly #texts = new Map<string, string>();

  /**
   * @param refusalOf why an option that is not among `known` is refused
   * @param subject the option of the command line that has the lists
   * @throws {UsageError} an option that there is not, or one without a value
   */
  constructor(
    known: readonly OptionRow[],
    lists: readonly string[],
    refusalOf: (name: string) => string,
    subject = "-o",
  ) {
    for (const item of lists.flatMap(splitList)) {
      const equals = item.indexOf("=");
      const name = equals < 0 ? item : item.slice(0, equals);
      if (!known.some(([candidate]) => candidate === name)) {
        const names = known.map(([candidate]) => candidate);
        const meant = nearestWord(name, names);
        const advice = meant === undefined ? "" : `; did you mean ${meant}?`;
        throw new UsageError(subject, refusalOf(name) + advice);
      }
      if (equals < 0) throw new UsageError(subject, `${name} needs a value: ${name}=…`);
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
    const parse = (text: string): number | undefined => parseSize(`-o ${name}`, text);
    return this.#parse(name, parse, "a size, such as 512, 64k or 1.5G");
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
