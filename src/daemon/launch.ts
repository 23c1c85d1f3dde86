/** Starting the background process, and waiting until it is ready or has failed. */

import { spawn } from "node:child_process";
import fs from "node:fs";
import { fileURLToPath } from "node:url";
import { StorageError, TsimgfsError } from "../errors.ts";
import { nodeErrorCode } from "../syscalls/errno-names.ts";
import type { DaemonConfig, Readiness } from "./config.ts";

/**
 * Start a daemon that outlives this process. Returns its warnings when the devices can be used.
 *
 * @throws {TsimgfsError} the daemon's own reason; nothing is left
 */
export async function launchDaemon(config: DaemonConfig): Promise<readonly string[]> {
  const log = openLog(config.logFile);
  // From any folder beside daemon/: the build moves code that commands share.
  const program = fileURLToPath(new URL("../daemon/main.js", import.meta.url));
  const child = spawn(process.execPath, [program, JSON.stringify(config)], {
    detached: true,
    stdio: ["ignore", "ignore", log, "pipe"],
  });
  if (typeof log === "number") fs.closeSync(log);
  const exited = new Promise<string>((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("exit", (code, signal) => resolve(`ended with ${signal ?? `status ${code}`}`));
  });
  const pipe = child.stdio[3];
  if (pipe === null || pipe === undefined || !("read" in pipe))
    throw new RangeError("no report pipe");
  let text = "";
  for await (const chunk of pipe) text += String(chunk);
  const line = text.split("\n", 1)[0] ?? "";
  if (line === "") {
    throw new TsimgfsError("EIO", config.mountpoint, `the background process ${await exited}`);
  }
  const readiness: Readiness = JSON.parse(line);
  if (readiness.kind === "failed") throw new DaemonError(readiness.message);
  child.unref();
  return readiness.warnings;
}

/** The daemon's message, which names the file already. */
export class DaemonError extends Error {
  override readonly name = "DaemonError";
}

/** Where the daemon's messages go: the log file; with DEBUG set, this terminal; else nowhere. */
function openLog(path: string | undefined): number | "inherit" | "ignore" {
  if (path === undefined) return process.env["DEBUG"] ? "inherit" : "ignore";
  try {
    return fs.openSync(path, "a", 0o600);
  } catch (cause) {
    const code = nodeErrorCode(cause);
    throw new StorageError(code, path, `the log cannot be written: ${code}`, { cause });
  }
}
