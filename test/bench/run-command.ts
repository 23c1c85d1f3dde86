/**
 * Runs other programs for the benchmark: with a time limit, and ended early when the benchmark is
 * interrupted.
 */

import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { performance } from "node:perf_hooks";

export type CommandLine = readonly [program: string, ...args: string[]];

export interface RunOptions {
  /** When this aborts, the program is ended and the promise rejects. */
  readonly signal?: AbortSignal;
  /** Default: two minutes. */
  readonly timeoutMs?: number;
  /** Added to our environment. */
  readonly env?: Readonly<Record<string, string>>;
  /**
   * Output goes to this file, and the program counts as done when it has exited. Without it, output
   * is collected
   * through pipes, and a background process that inherits them would delay the end.
   */
  readonly logFile?: string;
}

export interface RunResult {
  readonly stdout: string;
  readonly stderr: string;
  /** From just before the start to the exit. */
  readonly elapsedMs: number;
}

const TIMEOUT_MS = 120_000;
/** How long a program may take to end after SIGTERM. */
const GRACE_MS = 3_000;

/** Run to the end. Rejects, with a line of its output that says why, if the program fails. */
export async function run(command: CommandLine, options: RunOptions = {}): Promise<RunResult> {
  options.signal?.throwIfAborted();
  const [program, ...args] = command;
  const log = options.logFile === undefined ? undefined : openSync(options.logFile, "w");
  const started = performance.now();
  // In a process group of its own: a Ctrl-C at the terminal reaches the benchmark alone, which then
  // ends its programs.
  const child = spawn(program, args, {
    stdio: log === undefined ? ["ignore", "pipe", "pipe"] : ["ignore", log, log],
    env: { ...process.env, LC_ALL: "C", ...options.env },
    detached: true,
  });
  if (log !== undefined) closeSync(log);

  let stdout = "";
  let stderr = "";
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });

  const end = (): void => {
    signalGroup(child.pid, "SIGTERM");
    setTimeout(() => signalGroup(child.pid, "SIGKILL"), GRACE_MS).unref();
  };
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    end();
  }, options.timeoutMs ?? TIMEOUT_MS);
  options.signal?.addEventListener("abort", end);
  let elapsedMs = 0;
  child.on("exit", () => {
    elapsedMs = performance.now() - started;
  });
  try {
    const status = await new Promise<string | undefined>((resolve, reject) => {
      child.on("error", reject);
      child.on(log === undefined ? "close" : "exit", (code, killedBy) => {
        resolve(
          code === 0 ? undefined : code === null ? `killed by ${killedBy}` : `exit status ${code}`,
        );
      });
    });
    options.signal?.throwIfAborted();
    if (status !== undefined) {
      const errors = options.logFile === undefined ? stderr : readFileSync(options.logFile, "utf8");
      // fio says why before its JSON.
      const reason = lines(errors).at(-1) ?? lines(stdout)[0] ?? "";
      throw new Error(
        `${command.join(" ")}: ${timedOut ? "took too long" : status}${reason && `: ${reason}`}`,
      );
    }
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener("abort", end);
  }
  return { stdout, stderr, elapsedMs };
}

function lines(text: string): string[] {
  return text.split("\n").filter((line) => line.trim() !== "");
}

/**
 * Signal a process group that `run` or a caller made with `detached`. One that is gone already is
 * no error.
 */
export function signalGroup(leaderPid: number | undefined, signal: NodeJS.Signals): void {
  if (leaderPid === undefined) return;
  try {
    process.kill(-leaderPid, signal);
  } catch {
    // ESRCH: nothing is left of it.
  }
}

/** Whether a program of this name can be started. */
export async function hasProgram(name: string): Promise<boolean> {
  try {
    await run(["sh", "-c", `command -v "$1"`, "sh", name]);
    return true;
  } catch {
    return false;
  }
}
