/**
 * Runs the command on a hostile image and checks what must hold whatever the image is: it ends by itself
 * with status 0 or 1, within memory, says no stack traces, and refuses in one printable line.
 */

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect } from "vitest";
import { UNPRINTABLE } from "./hostile-text.ts";
import { MAIN } from "./repository.ts";
import { attempt, type RunResult } from "./run.ts";

export const MEMORY_LIMIT_BYTES = 300 * 1024 * 1024;

/** Only finds hangs: commands need a fraction of a second. */
const HANG_MS = 60_000;

const MEMORY_FILE = "TSIMGFS_TEST_MEMORY_FILE";

/** A module that runs in the command before it: notes the peak of resident memory when the process ends. */
const MEMORY_HOOK = `
import { appendFileSync, readFileSync } from "node:fs";
import { isMainThread } from "node:worker_threads";
if (isMainThread) {
  process.on("exit", () => {
    const peak = /VmHWM:\\s+(\\d+) kB/.exec(readFileSync("/proc/self/status", "latin1"));
    appendFileSync(process.env["${MEMORY_FILE}"], peak[1] + "\\n");
  });
}
`;

/** Highest resident memory so far of a running process, bytes. */
export function peakMemoryBytes(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  return Number(/^VmHWM:\s+(\d+) kB/m.exec(status)?.[1] ?? Number.NaN) * 1024;
}

/** Runs `tsimgfs ARGS…`, whose last argument is the image, and checks what must always hold. */
export async function checkedTsimgfs(
  args: readonly string[],
  directory = dirname(args.at(-1) ?? ""),
): Promise<RunResult> {
  const memoryFile = join(directory, `.memory-${args[0] ?? ""}`);
  const hook = join(directory, ".memory-hook.mjs");
  writeFileSync(hook, MEMORY_HOOK);
  const result = await attempt(process.execPath, ["--import", hook, MAIN, ...args], {
    timeoutMs: HANG_MS,
    env: { [MEMORY_FILE]: memoryFile },
  });
  expectWellBehaved(result);
  const peaks = readFileSync(memoryFile, "utf8").trim().split("\n").map(Number);
  rmSync(memoryFile);
  expect(Math.max(...peaks) * 1024, `peak resident memory of ${result.commandLine}`).toBeLessThan(
    MEMORY_LIMIT_BYTES,
  );
  return result;
}

/** Status 0 or 1, no stack trace, only printable lines that start with "tsimgfs: ", one of them on failure. */
export function expectWellBehaved(result: RunResult): void {
  const context = `${result.commandLine}\n${result.stderr}`;
  expect([0, 1], `exit status of ${context}`).toContain(result.status);
  expectPrintableLines(result.stderr, context);
  if (result.status === 1) {
    const refusals = result.stderr
      .split("\n")
      .filter((line) => line !== "" && !/^tsimgfs: .*\bwarning\b/.test(line));
    expect(refusals, `refusals in ${context}`).toHaveLength(1);
  }
}

/** Every line starts with "tsimgfs: ", has no control characters and is no stack frame. */
export function expectPrintableLines(text: string, context: string): void {
  for (const line of text.split("\n").filter((candidate) => candidate !== "")) {
    expect(line, `a line on stderr of ${context}`).toMatch(/^tsimgfs: /);
    expect(line, `a line on stderr of ${context}`).not.toMatch(UNPRINTABLE);
  }
}
