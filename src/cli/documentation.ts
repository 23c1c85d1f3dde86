/** What there is to say of a command beside its description, arguments and options. */

/** Lines that stay as they are: a table. */
export interface Table {
  readonly lines: string;
}
export type Paragraph = string | Table;
/** What it does, and the line to type. */
export type Example = readonly [purpose: string, line: string];
export type ExitStatus = readonly [status: number, meaning: string];

export interface Documentation {
  /** Printed by `--help`, which fits a screen. */
  readonly notes?: readonly Paragraph[];
  /** Printed by `tsimgfs help NAME` and in the man page only. */
  readonly details?: readonly Paragraph[];
  /** Where it is not 0 for success, and 1 for failure. */
  readonly exitStatus?: readonly ExitStatus[];
  readonly examples: readonly Example[];
  /** Commands of tsimgfs that have to do with it, and other man pages, such as `losetup(8)`. */
  readonly seeAlso?: readonly string[];
}
