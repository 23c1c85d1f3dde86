/** Commands that somebody types, or that come through a pipe: a prompt, and a line after it. */

import { createInterface } from "node:readline";
import { print } from "../print.ts";
import { COMMANDS } from "./commands.ts";
import type { IoSession } from "./session.ts";

const PROMPT = "tsimgfs io> ";
/** Lines that can be called back. */
const HISTORY_SIZE = 1000;

/**
 * Do what comes from standard input, up to its end or `quit`. On a terminal, lines are edited, called
 * back, and names of commands completed.
 *
 * @param interrupt Ctrl-C was typed, which a terminal that edits lines makes no signal of
 */
export async function runPrompt(session: IoSession, interrupt: () => void): Promise<void> {
  const terminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const reader = createInterface({
    input: process.stdin,
    ...(terminal ? { output: process.stdout } : {}),
    terminal,
    historySize: HISTORY_SIZE,
    completer: completions,
    prompt: PROMPT,
  });
  reader.on("SIGINT", interrupt);
  const lines = reader[Symbol.asyncIterator]();
  try {
    while (!session.hasEnded) {
      if (terminal) reader.prompt();
      else print(PROMPT);
      const line = await lines.next();
      if (line.done === true) break;
      await session.run(line.value);
    }
  } finally {
    reader.close();
  }
}

/** The names of commands that a line could start with. */
function completions(line: string): [string[], string] {
  const names = COMMANDS.map(({ name }) => name).filter((name) => name.startsWith(line));
  return [names.map((name) => `${name} `), line];
}
