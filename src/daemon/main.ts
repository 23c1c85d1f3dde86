/** The background process: gets its task as JSON on standard input, reports on descriptor 3, and serves. */

import fs from "node:fs";
import type { DaemonConfig, Readiness } from "./config.ts";
import { createStartMemory, startIoThread } from "./io-thread-start.ts";

const STDIN = 0;
/** Where the command that started this process waits for a report. */
const REPORT_FD = 3;

function report(readiness: Readiness): void {
  fs.writeSync(REPORT_FD, JSON.stringify(readiness));
  fs.closeSync(REPORT_FD);
}

async function main(): Promise<void> {
  // A thread starts by itself, while this one loads what it needs.
  const start = createStartMemory();
  const worker = startIoThread({ thread: 0, start });
  const { runDaemon } = await import("./run.ts");
  const { detachInput } = await import("./standard-streams.ts");
  const task = fs.readFileSync(STDIN, "utf8");
  // The command line was wrong, or asked for help.
  if (task === "") process.exit(0);
  detachInput();
  const config: DaemonConfig = JSON.parse(task);
  process.title = `tsimgfs mount ${[...config.images, config.mountpoint].join(" ")}`;
  let reported = false;
  try {
    await runDaemon(config, { worker, start }, (warnings) => {
      report({ kind: "ready", warnings });
      reported = true;
    });
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    if (reported) fs.writeSync(process.stderr.fd, `tsimgfs: ${message}\n`);
    else report({ kind: "failed", message });
    process.exitCode = 1;
  }
}

void main();
