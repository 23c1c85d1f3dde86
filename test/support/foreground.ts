// Programs that stay in the foreground for the length of a test: they are always ended, by their own process id.

import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { until } from "./run.ts";

/** A running program that the test started. */
export class Foreground {
  readonly #child: ChildProcessWithoutNullStreams;
  #output = "";
  #status: number | NodeJS.Signals | undefined;

  constructor(command: string, args: readonly string[], env: Readonly<Record<string, string>>) {
    this.#child = spawn(command, [...args], { env: { ...process.env, ...env } });
    const append = (chunk: Buffer): void => {
      this.#output += chunk.toString("utf8");
    };
    this.#child.stdout.on("data", append);
    this.#child.stderr.on("data", append);
    this.#child.stdin.on("error", () => {}); // The program may have ended.
    this.#child.on("error", (error) => append(Buffer.from(String(error))));
    this.#child.on("close", (code, signal) => {
      this.#status = code ?? signal ?? -1;
    });
  }

  get pid(): number {
    if (this.#child.pid === undefined) {
      throw new Error(`not started: ${this.#output}`);
    }
    return this.#child.pid;
  }

  /** All it has printed so far. */
  get output(): string {
    return this.#output;
  }

  get isRunning(): boolean {
    return this.#status === undefined;
  }

  /** Sends text to its standard input. */
  write(text: string): void {
    this.#child.stdin.write(text);
  }

  /** No more is sent. */
  closeInput(): void {
    this.#child.stdin.end();
  }

  kill(signal: NodeJS.Signals): void {
    process.kill(this.pid, signal);
  }

  /** Waits for its end; returns the exit status, or the signal that ended it. */
  async end(timeoutMs = 20_000): Promise<number | NodeJS.Signals> {
    await until(`the program ends: ${this.#output}`, () => !this.isRunning, timeoutMs);
    return this.#status ?? -1;
  }

  /** Kills it if it still runs. */
  async dispose(): Promise<void> {
    if (this.isRunning) {
      this.kill("SIGKILL");
      await this.end();
    }
  }
}

/** Calls `body` with a running program and ends the program afterwards. */
export async function withProgram<T>(
  command: string,
  args: readonly string[],
  body: (program: Foreground) => Promise<T>,
  env: Readonly<Record<string, string>> = {},
): Promise<T> {
  const program = new Foreground(command, args, env);
  try {
    return await body(program);
  } finally {
    await program.dispose();
  }
}
