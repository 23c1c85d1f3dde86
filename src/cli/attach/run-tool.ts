/** Programs of the system that attach and detach use. */

import { spawnSync } from "node:child_process";
import { TsimgfsError } from "../../errors.ts";
import { OWN_SESSION } from "../../own-session.ts";
import { searchPath } from "../../search-path.ts";
import { nodeErrorCode } from "../../syscalls/errno-names.ts";
import { createTrace } from "../../trace.ts";

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
    env: { ...process.env, PATH: searchPath(), LC_ALL: "C" },
  });
  if (result.error !== undefined) {
    const code = nodeErrorCode(result.error);
    const reason =
      code === "ENOENT" ? "not found; install the packages util-linux and mount" : code;
    throw new TsimgfsError(code, program, reason, { cause: result.error });
  }
  const line = result.stderr.split("\n").find((text) => text.trim() !== "") ?? "failed";
  const complaint = line.replace(`${program}: `, "").trim();
  return { status: result.status ?? undefined, stdout: result.stdout, complaint };
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
  const reason = complaint.replace(`${subject}: `, "");
  const code = /busy/i.test(complaint) ? "EBUSY" : "EIO";
  throw new TsimgfsError(code, subject, `${program}: ${reason}`);
}
