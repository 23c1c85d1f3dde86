/** The background process: gets its task as JSON, reports on descriptor 3, and serves. */

import fs from "node:fs";
import { writeLine } from "../trace.ts";
import type { DaemonConfig, Readiness } from "./config.ts";
import { runDaemon } from "./run.ts";

/** Where the command that started this process waits for a line. */
export const REPORT_FD = 3;

function report(readiness: Readiness): void {
  fs.writeSync(REPORT_FD, `${JSON.stringify(readiness)}\n`);
  fs.closeSync(REPORT_FD);
}

const config: DaemonConfig = JSON.parse(process.argv[2] ?? "");
process.title = `tsimgfs mount ${[...config.images, config.mountpoint].join(" ")}`;
let reported = false;
try {
  await runDaemon(config, (warnings) => {
    report({ kind: "ready", warnings });
    reported = true;
  });
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  if (reported) writeLine(`tsimgfs: ${message}`);
  else report({ kind: "failed", message });
  process.exitCode = 1;
}
