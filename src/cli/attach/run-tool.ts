/** Programs of the system that attach and detach use. */

import { spawn, spawnSync } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { TsimgfsError } from "../../errors.ts";
import { OWN_SESSION } from "../../own-session.ts";
import { searchPath } from "../../search-path.ts";
import { nodeErrorCode } from "../../syscalls/errno-names.ts";
import { createTrace } from "../../trace.ts";

/** What takes longer waits for something that may never come: an unmount writes out what is dirty. */
const PATIENCE_MS = 30_000;

export interface ToolResult {
  /** undefined: a signal has ended it. */
  readonly status: number | undefined;
  readonly stdout: string;
  /** The first line of what it complained about, without its name. */
  readonly complaint: string;
}

/**
 * Run a program; any exit status is returned.
 *
 * @throws {TsimgfsError} it is not there
 */
export function attemptTool(program: string, args: readonly string[]): ToolResult {
  createTrace("run")("%s %s", program, args.join(" "));
  const result = spawnSync(program, args, {
    ...OWN_SESSION,
    stdio: ["ignore", "pipe", "pipe"],
    encoding: "utf8",
    env: toolEnvironment(),
  });
  if (result.error !== undefined) throw notStarted(program, result.error);
  const complaint = complaintOf(program, result.stderr);
  return { status: result.status ?? undefined, stdout: result.stdout, complaint };
}

function toolEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: searchPath(), LC_ALL: "C" };
}

function notStarted(program: string, cause: Error): TsimgfsError {
  const code = nodeErrorCode(cause);
  const reason = code === "ENOENT" ? "not found; install the packages util-linux and mount" : code;
  return new TsimgfsError(code, program, reason, { cause });
}

function complaintOf(program: string, stderr: string): string {
  const line = stderr.split("\n").find((text) => text.trim() !== "") ?? "failed";
  return line.replace(`${program}: `, "").trim();
}

/**
 * Run a program that must succeed; returns what it printed.
 *
 * @param subject what the message is about
 * @throws {TsimgfsError} with what it complained about
 */
export function runTool(program: string, args: readonly string[], subject: string): string {
  const { status, stdout, complaint } = attemptTool(program, args);
  if (status === 0) return stdout;
  throw failure(program, complaint, subject);
}

/**
 * As `runTool`, for what may wait for a medium that does not answer: then not even a signal ends the program.
 *
 * @throws {TsimgfsError} EBUSY: so it is; what the program was told to do it does when it gets an answer
 */
export async function runToolPatiently(
  program: string,
  args: readonly string[],
  subject: string,
): Promise<void> {
  createTrace("run")("%s %s", program, args.join(" "));
  const child = spawn(program, args, {
    ...OWN_SESSION,
    stdio: ["ignore", "ignore", "pipe"],
    env: toolEnvironment(),
  });
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const limit = new AbortController();
  const ended = new Promise<number>((resolve, reject) => {
    child.once("error", (cause) => reject(notStarted(program, cause)));
    child.once("close", (status) => resolve(status ?? 1));
  });
  const tooLong = sleep(PATIENCE_MS, undefined, { signal: limit.signal }).catch(() => undefined);
  try {
    const status = await Promise.race([ended, tooLong]);
    if (status === undefined) {
      const reason = `${program} waits, perhaps for a medium that does not answer; detach again when it does`;
      throw new TsimgfsError("EBUSY", subject, reason);
    }
    if (status !== 0) throw failure(program, complaintOf(program, stderr), subject);
  } finally {
    limit.abort();
    child.stderr.destroy();
    child.unref();
  }
}

function failure(program: string, complaint: string, subject: string): TsimgfsError {
  const named = `${subject}: `;
  const reason = complaint.startsWith(named) ? complaint.slice(named.length) : complaint;
  const code = /busy/i.test(complaint) ? "EBUSY" : "EIO";
  return new TsimgfsError(code, subject, `${program}: ${reason}`);
}
