#!/usr/bin/env node
/** The command `tsimgfs`. What takes longer to start than anything else is started first: a daemon, a thread. */

import { availableParallelism } from "node:os";
import type { PendingDaemon } from "../daemon/launch.ts";
import { prepareCopyThread } from "./copy-thread-start.ts";

/** Commands that copy disks, on several threads where that is a gain. */
const COPYING = ["convert", "dd"];

async function startDaemon(): Promise<PendingDaemon> {
  const { PendingDaemon } = await import("../daemon/launch.ts");
  return new PendingDaemon();
}

async function main(argv: readonly string[]): Promise<void> {
  const [command = ""] = argv;
  const daemon = command === "mount" ? await startDaemon() : undefined;
  if (COPYING.includes(command) && availableParallelism() > 1) prepareCopyThread();
  const { runProgram } = await import("./program.ts");
  await runProgram(argv, daemon);
  const { leave } = await import("./leave.ts");
  leave();
}

void main(process.argv.slice(2));
