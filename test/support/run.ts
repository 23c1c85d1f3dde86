// Runs other people's programs with a time limit, and fails with everything they said.

import { spawn } from "node:child_process";

/** The identity a command runs under; without it, that of the test. */
export interface Identity {
  readonly uid: number;
  readonly gid: number;
}

export interface RunOptions {
  readonly cwd?: string;
  /** Added to the environment of the test. */
  readonly env?: Readonly<Record<string, string>>;
  readonly identity?: Identity | undefined;
  /** After this the command is killed and the call fails. */
  readonly timeoutMs?: number;
  readonly input?: string;
}

export interface RunResult {
  /** The command line, for messages. */
  readonly commandLine: string;
  /** Exit status; undefined if a signal ended the command. */
  readonly status: number | undefined;
  readonly stdout: string;
  readonly stderr: string;
}

/** A command that ended in another way than the test needs. Its message holds the whole output. */
export class RunError extends Error {
  override readonly name: string = "RunError";

  constructor(problem: string, result: RunResult) {
    super(
      `${problem}: ${result.commandLine}\n--- stdout\n${result.stdout}\n--- stderr\n${result.stderr}`,
    );
  }
}

const DEFAULT_TIMEOUT_MS = 60_000;

/** How long a finished command's output may stay open before a background process is blamed. */
const OUTPUT_GRACE_MS = 5_000;

/**
 * QEMU measures how fast it derives keys, and gives up when the kernel's account of processor time has stood
 * still meanwhile: nothing is wrong then, and nothing was tested.
 */
const QEMU_GAVE_UP = "Unable to get accurate CPU usage";
const QEMU_ATTEMPTS = 20;

/** Runs a command; whatever exit status it has is returned. Fails only on time out or if it cannot start. */
export async function attempt(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  for (let attempts = 1; ; attempts++) {
    const result = await attemptOnce(command, args, options);
    const gaveUp = command.startsWith("qemu-") && result.stderr.includes(QEMU_GAVE_UP);
    if (!gaveUp || attempts === QEMU_ATTEMPTS) return result;
  }
}

function attemptOnce(
  command: string,
  args: readonly string[],
  options: RunOptions,
): Promise<RunResult> {
  const commandLine = [command, ...args].join(" ");
  const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  return new Promise((resolve, reject) => {
    const child = spawn(command, [...args], {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      stdio: ["pipe", "pipe", "pipe"],
      ...options.identity,
    });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    let status: number | undefined;
    let problem: string | undefined;
    let grace: NodeJS.Timeout | undefined;
    const result = (): RunResult => ({
      commandLine,
      status,
      stdout: Buffer.concat(out).toString("utf8"),
      stderr: Buffer.concat(err).toString("utf8"),
    });
    const limit = setTimeout(() => {
      problem = `no end after ${timeoutMs} ms`;
      child.kill("SIGKILL");
    }, timeoutMs);
    child.stdout.on("data", (chunk: Buffer) => out.push(chunk));
    child.stderr.on("data", (chunk: Buffer) => err.push(chunk));
    child.stdin.on("error", () => {}); // The command may end without reading its input.
    child.stdin.end(options.input ?? "");
    child.on("error", (cause) => {
      clearTimeout(limit);
      reject(new Error(`cannot run ${commandLine}`, { cause }));
    });
    child.on("exit", (code) => {
      clearTimeout(limit);
      status = code ?? undefined;
      grace = setTimeout(() => {
        problem ??= "ended, but a process it left behind keeps its output open";
        child.stdout.destroy();
        child.stderr.destroy();
      }, OUTPUT_GRACE_MS);
    });
    child.on("close", () => {
      clearTimeout(grace);
      if (problem === undefined) {
        resolve(result());
      } else {
        reject(new RunError(problem, result()));
      }
    });
  });
}

/** Runs a command that must end with exit status 0. */
export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const result = await attempt(command, args, options);
  if (result.status !== 0) {
    throw new RunError(`exit status ${result.status ?? "none (signal)"}`, result);
  }
  return result;
}

/** Runs a command and parses what it prints as JSON. */
export async function runJson(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<unknown> {
  const result = await run(command, args, options);
  try {
    return JSON.parse(result.stdout);
  } catch {
    throw new RunError("output is not JSON", result);
  }
}

/** Waits until `condition` holds, looking again every few milliseconds. */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 15_000,
): Promise<void> {
  const end = Date.now() + timeoutMs;
  while (!(await condition())) {
    if (Date.now() > end) {
      throw new Error(`waited ${timeoutMs} ms in vain: ${what}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
