// Runs the built command as a user would, and checks the form of its refusals.

import { join } from "node:path";
import { expect } from "vitest";
import { MAIN } from "./repository.ts";
import { attempt, RunError, type RunOptions, type RunResult, run } from "./run.ts";
import { withScratch } from "./scratch.ts";

/** Runs `tsimgfs ARGS…`, which must succeed. */
export function tsimgfs(args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  return run(process.execPath, [MAIN, ...args], options);
}

/** Runs `tsimgfs ARGS…`; any exit status is returned. */
export function attemptTsimgfs(
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  return attempt(process.execPath, [MAIN, ...args], options);
}

/** Standard outputs that take nothing: a full disk; a pipe whose reader has gone. */
const BAD_OUTPUTS = {
  full: '"$@" >/dev/full',
  gone: 'mkfifo "$0" && exec 3<>"$0" 4>"$0" 3<&- && rm "$0" && "$@" >&4',
};

/** Runs `tsimgfs ARGS…` with an output that takes nothing. */
export function attemptWithOutput(
  output: keyof typeof BAD_OUTPUTS,
  args: readonly string[],
): Promise<RunResult> {
  return withScratch("output", (directory) =>
    attempt("bash", [
      "-c",
      BAD_OUTPUTS[output],
      join(directory, "pipe"),
      process.execPath,
      MAIN,
      ...args,
    ]),
  );
}

/** The one line of a refusal: exit status 1 and a single line on stderr that starts with "tsimgfs: ". */
export function refusalOf(result: RunResult): string {
  const isOneLine = /^tsimgfs: [^\n]+\n$/.test(result.stderr);
  if (result.status !== 1 || !isOneLine) {
    throw new RunError(`exit status ${result.status}, wanted 1 and one line "tsimgfs: …"`, result);
  }
  return result.stderr.trimEnd();
}

/** Expects that `tsimgfs ARGS…` refuses in one line that matches all patterns. */
export async function expectRefusal(
  args: readonly string[],
  patterns: readonly (RegExp | string)[],
  options: RunOptions = {},
): Promise<void> {
  const line = refusalOf(await attemptTsimgfs(args, options));
  for (const pattern of patterns) {
    expect(line).toMatch(pattern);
  }
}
