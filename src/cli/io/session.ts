/** One run of `tsimgfs io`: lines of commands on one disk, and whether they all went well. */

import { printable, TsimgfsError } from "../../errors.ts";
import { print, printError, printMessage } from "../print.ts";
import type { IoCommand, IoContext } from "./command.ts";
import { findCommand, QUIT_COMMAND } from "./commands.ts";
import { IoFailure } from "./failure.ts";

export class IoSession {
  readonly #io: IoContext;
  #hasFailed = false;
  #hasEnded = false;

  constructor(io: IoContext) {
    this.#io = io;
  }

  /** A command failed. */
  get hasFailed(): boolean {
    return this.#hasFailed;
  }

  /** `quit` was said. */
  get hasEnded(): boolean {
    return this.#hasEnded;
  }

  /** Do a line: a command and its words, parted by spaces. What fails is told, and those after it are done. */
  async run(line: string): Promise<void> {
    const [name, ...words] = line.split(" ").filter((word) => word !== "");
    if (name === undefined) return;
    try {
      const command = this.#command(name, words.length);
      this.#hasEnded ||= command === QUIT_COMMAND;
      await command.run(this.#io, { name, words });
    } catch (error) {
      this.#hasFailed = true;
      tell(error);
    }
  }

  /** @throws {IoFailure} there is no such command, or not with so many words, or not on this disk */
  #command(name: string, count: number): IoCommand {
    const command = findCommand(name);
    if (command === undefined) throw new IoFailure({ errors: `command "${name}" not found` });
    const [min, max] = command.words;
    if (count < min || count > max) {
      const expected = `expected ${countText(min, max)} arguments`;
      throw new IoFailure({ errors: `bad argument count ${count} to ${name}, ${expected}` });
    }
    if (command.writes === true && !this.#io.disk.isWritable) {
      throw new IoFailure({ errors: `tsimgfs: ${this.#io.path}: Block node is read-only` });
    }
    return command;
  }
}

function countText(min: number, max: number): string {
  if (max === Number.POSITIVE_INFINITY) return `at least ${min}`;
  return min === max ? String(min) : `between ${min} and ${max}`;
}

function tell(error: unknown): void {
  if (error instanceof IoFailure) {
    if (error.errors !== "") printError(`${printable(error.errors)}\n`);
    if (error.output !== "") print(`${printable(error.output)}\n`);
  } else if (error instanceof TsimgfsError) printMessage(error.message);
  else throw error;
}
