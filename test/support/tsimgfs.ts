// Runs the built command as a user would, and checks the form of its refusals.

import { expect } from "vitest";
import { MAIN } from "./repository.ts";
import { attempt, RunError, type RunOptions, type RunResult, run } from "./run.ts";

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
