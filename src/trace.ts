/**
 * Tracing through the `debug` package: DEBUG=tsimgfs:* on any command. Lines are written at once, since
 * an I/O thread never returns to an event loop that would flush them.
 */

import fs from "node:fs";
import { createRequire } from "node:module";
import { format } from "node:util";
import type debugPackage from "debug";

const STDERR = 2;

export interface Trace {
  /** Ask before building arguments that cost something. */
  readonly enabled: boolean;
  (template: string, ...values: unknown[]): void;
}

const SILENT: Trace = Object.assign(() => undefined, { enabled: false });

/** The tracer of `tsimgfs:NAME`. Without DEBUG in the environment, the package is not even loaded. */
export function createTrace(name: string): Trace {
  if (process.env["DEBUG"] === undefined || process.env["DEBUG"] === "") return SILENT;
  const debug: typeof debugPackage = createRequire(import.meta.url)("debug");
  const trace = debug(`tsimgfs:${name}`);
  trace.log = (...values: unknown[]): void => writeLine(format(...values));
  return trace;
}

/** Write one line to standard error at once, whole; a closed or full one is no reason to fail. */
export function writeLine(line: string): void {
  try {
    fs.writeSync(STDERR, `${line}\n`);
  } catch {
    // Nobody reads it.
  }
}
