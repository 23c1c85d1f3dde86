/** The background process: gets its task as JSON on standard input, reports on descriptor 3, and serves. */

import fs from "node:fs";
import { decodeTask, type Readiness } from "./config.ts";
import { closeInherited } from "./inherited-files.ts";
import { createStartMemory, letEnd, startIoThread } from "./io-thread-start.ts";

const STDIN = 0;
/** Where the command that started this process waits for a report. */
const REPORT_FD = 3;

function report(readiness: Readiness): void {
  fs.writeSync(REPORT_FD, JSON.stringify(readiness));
  fs.closeSync(REPORT_FD);
}

async function main(): Promise<void> {
  closeInherited();
  // A thread starts by itself, while this one loads what it needs.
  const start = createStartMemory();
  const worker = startIoThread({ thread: 0, start });
  const { runDaemon } = await import("./run.ts");
  const { detachInput } = await import("./standard-streams.ts");
  const task = fs.readFileSync(STDIN);
  // The command line was wrong, or asked for help.
  if (task.length === 0) {
    letEnd(start);
    return;
  }
  detachInput();
  const { config, secrets } = decodeTask(task);
  process.title = `tsimgfs mount ${[...config.images, config.mountpoint].join(" ")}`;
  let isReady = false;
  try {
    const early = await runDaemon(config, secrets, { worker, start }, (warnings) => {
      isReady = true;
      report({ kind: "ready", warnings });
    });
    if (early === undefined) return;
    process.exitCode = 1;
    reportFailure(`${config.images.join(", ")}: the background process was ended by ${early}`);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    process.exitCode = 1;
    if (isReady) fs.writeSync(process.stderr.fd, `tsimgfs: ${message}\n`);
    else reportFailure(message);
  }
}

function reportFailure(message: string): void {
  try {
    report({ kind: "failed", message });
  } catch {
    // Whoever asked has been interrupted.
  }
}

void main();
