/**
 * Starting the background process, and waiting until it is ready or has failed. The process is started
 * first and told its task when that is known: both take their time to load.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { TsimgfsError } from "../errors.ts";
import { createTrace } from "../trace.ts";
import { type DaemonConfig, encodeTask, type Readiness, type TaskSecrets } from "./config.ts";

/**
 * A daemon should be small: requests make no garbage worth a large young generation (Node's default
 * is 16 MiB a thread, three times), nor helper threads for its collection.
 */
export const NODE_OPTIONS = ["--max-semi-space-size=1", "--v8-pool-size=1"];
/**
 * Nor does each thread need an arena of malloc of its own. And with NODE_EXTRA_CA_CERTS, Node takes
 * 30 ms longer to start, to load certificates that nothing here asks for. A passphrase would be there for
 * as long as the daemon is.
 */
const ENVIRONMENT = {
  MALLOC_ARENA_MAX: "1",
  NODE_EXTRA_CA_CERTS: undefined,
  TSIMGFS_SECRET: undefined,
};

/** Descriptors of the daemon: its task is on standard input, what it reports on another pipe. */
const REPORT_FD = 3;

/** One that is told to end does so in less, unless a medium does not answer: then it is not waited for. */
const STOP_MAX_MS = 5000;

/** A process that waits for its task, and ends if it gets none. */
export class PendingDaemon {
  readonly #child: ChildProcess;
  readonly #ended: Promise<string>;

  constructor() {
    // From any folder beside daemon/: the build puts what commands need into their files.
    const program = fileURLToPath(new URL("../daemon/main.js", import.meta.url));
    // Its messages go to a log file if it is told of one; with DEBUG set, to this terminal.
    const stderr = process.env["DEBUG"] ? "inherit" : "ignore";
    this.#child = spawn(process.execPath, [...NODE_OPTIONS, program], {
      detached: true,
      env: { ...process.env, ...ENVIRONMENT },
      stdio: ["pipe", "ignore", stderr, "pipe"],
    });
    this.#ended = new Promise((resolve) => {
      this.#child.once("error", (error) => resolve(error.message));
      this.#child.once("exit", (code, signal) =>
        resolve(`ended with ${signal ?? `status ${code}`}`),
      );
    });
    // A process that dies early is noticed by the report that does not come.
    this.#child.stdin?.on("error", () => undefined);
  }

  /**
   * Give the daemon its task; it goes on when this process has ended. Returns its warnings when the
   * devices can be used.
   *
   * @param secrets passphrases of encrypted images
   * @throws {DaemonError | TsimgfsError} nothing is left
   */
  async launch(config: DaemonConfig, secrets: TaskSecrets): Promise<readonly string[]> {
    const { images, mountpoint } = config;
    createTrace("mount")("process %d opens %s", this.#child.pid, images.join(", "));
    const task = encodeTask(config, secrets);
    this.#child.stdin?.end(task, () => task.fill(0));
    const pipe = this.#child.stdio[REPORT_FD];
    if (pipe === null || pipe === undefined || !("read" in pipe)) {
      throw new RangeError("no report pipe");
    }
    let text = "";
    for await (const chunk of pipe) text += String(chunk);
    if (text === "") {
      const reason = `the background process ${await this.#ended}`;
      throw new TsimgfsError("EIO", images.join(", "), reason);
    }
    const readiness: Readiness = JSON.parse(text);
    if (readiness.kind === "failed") throw new DaemonError(readiness.message);
    createTrace("mount")("process %d serves %s", this.#child.pid, mountpoint);
    this.#child.unref();
    return readiness.warnings;
  }

  /** Tell the process to end, which unmounts if it serves already, and wait until it has. */
  async stop(): Promise<void> {
    this.#child.kill("SIGTERM");
    await Promise.race([this.#ended, sleep(STOP_MAX_MS)]);
  }

  /** There is no task: the process ends. */
  dismiss(): void {
    this.#child.stdin?.end();
    this.#child.unref();
  }
}

/** The daemon's message, which names the file already. */
export class DaemonError extends Error {
  override readonly name = "DaemonError";
}
