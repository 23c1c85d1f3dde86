/** What programs without types may pass to openImage by mistake. */

import { isUint8Array } from "node:util/types";
import { nearestWord } from "../nearest-word.ts";
import type { OpenImageOptions } from "./image.ts";

/** Whether a value may be that of an option, and what it has to be. */
type Rule = readonly [isValid: (value: unknown) => boolean, wanted: string];

const isBytes: Rule = [
  (value) => Array.isArray(value) && value.every(isUint8Array),
  "an array of Uint8Array",
];

/** All options there are. Which words they may be, openImage looks at itself. */
const RULES: Readonly<Record<keyof OpenImageOptions, Rule>> = {
  format: [(value) => typeof value === "string", "a string"],
  readOnly: [(value) => typeof value === "boolean", "a boolean"],
  backingPolicy: [(value) => typeof value === "string", "a string"],
  secrets: isBytes,
  backingSecrets: isBytes,
};

/** @throws {TypeError} as openImage */
export function checkArguments(path: unknown, options: unknown): void {
  if (typeof path !== "string")
    throw new TypeError(`openImage: path is not a string: ${kindOf(path)}`);
  if (path.includes("\0")) throw new TypeError("openImage: path has a NUL character");
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    throw new TypeError(`openImage: options is not an object of options: ${kindOf(options)}`);
  }
  const rules: Readonly<Record<string, Rule>> = RULES;
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(rules, name)) throw new TypeError(unknownOption(name));
    const [isValid, wanted] = rules[name] ?? [];
    if (value === undefined || isValid?.(value) === true) continue;
    throw new TypeError(`openImage: options.${name} is not ${wanted}: ${kindOf(value)}`);
  }
}

/** @throws {TypeError} it is no number, as what is computed with it would not be */
export function requireNumber(name: string, value: unknown): void {
  if (typeof value === "number") return;
  throw new TypeError(`${name} is not a number: ${kindOf(value)}`);
}

function unknownOption(name: string): string {
  const meant = nearestWord(name, Object.keys(RULES));
  const advice = meant === undefined ? "" : `; did you mean ${meant}?`;
  return `openImage: there is no option "${name}"${advice}`;
}

/** A value's kind: the value itself could be a passphrase. */
function kindOf(value: unknown): string {
  if (value === null) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}
