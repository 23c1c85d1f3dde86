#!/usr/bin/env node
/** The command `tsimgfs`. A daemon takes longer to start than anything else: it is started first. */

import { PendingDaemon } from "../daemon/launch.ts";

async function main(argv: readonly string[]): Promise<void> {
  const daemon = argv[0] === "mount" ? new PendingDaemon() : undefined;
  const { runProgram } = await import("./program.ts");
  await runProgram(argv, daemon);
}

void main(process.argv.slice(2));
