/** Options that explain themselves twice: on a screen, and at length. */

import { Option } from "commander";

export class DocumentedOption extends Option {
  #manual: string | undefined;
  #isMinor = false;

  /** What `tsimgfs help NAME` and the man page say; without it, what `--help` does. */
  get manual(): string {
    return this.#manual ?? this.description;
  }

  /** Whether `--help` only names it where not all options fit a screen. */
  get isMinor(): boolean {
    return this.#isMinor;
  }

  inManual(text: string): this {
    this.#manual = text;
    return this;
  }

  /** Say that it is none for every day. */
  minor(): this {
    this.#isMinor = true;
    return this;
  }
}

/** All that there is to say of an option, and its default. */
export function manualText(option: Option): string {
  const text = option instanceof DocumentedOption ? option.manual : option.description;
  return withDefault(option, text);
}

/** The same on a line or two. */
export function briefText(option: Option): string {
  return withDefault(option, option.description);
}

/** Descriptions name the words that an option takes: commander need not list them again. */
function withDefault(option: Option, text: string): string {
  const { defaultValue, defaultValueDescription } = option;
  const takesValue = option.required || option.optional;
  if (!takesValue || defaultValue === undefined) return text;
  return `${text} (default: ${defaultValueDescription ?? String(defaultValue)})`;
}
