/** Why a command of `io` is not done: what it says instead, and where qemu-io says it. */

/** Thrown by commands before they change anything, or as the last that they do. */
export class IoFailure extends Error {
  override readonly name = "IoFailure";
  /** A line for standard output; empty: none. */
  readonly output: string;
  /** A line for standard error, which comes first; empty: none. */
  readonly errors: string;

  constructor({ output = "", errors = "" }: { output?: string; errors?: string }) {
    super(errors === "" ? output : errors);
    this.output = output;
    this.errors = errors;
  }
}
