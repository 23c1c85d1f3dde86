/**
 * Telling what is done: --verbose, or with every request the `debug` package: DEBUG=tsimgfs:* on any command. Lines
 * are written at once, since an I/O thread never returns to an event loop that would flush them.
 */

import fs from "node:fs";
import { createRequire } from "node:module";
import { format } from "node:util";
import type debugPackage from "debug";
import { printable } from "./errors.ts";
import { wantsColours } from "./terminal-colours.ts";

const STDERR = 2;

export interface Trace {
  /** Ask before building arguments that cost something. */
  readonly enabled: boolean;
  (template: string, ...values: unknown[]): void;
}

const SILENT: Trace = Object.assign(() => undefined, { enabled: false });

/** Single requests: too many for somebody who wants to know the steps of a command. */
const REQUESTS = "fuse";

let isVerbose = false;

/** From now on this process tells its steps, as `tsimgfs: NAME: STEP`; not its single requests. */
export function traceSteps(): void {
  isVerbose = true;
}

/** The tracer of `tsimgfs:NAME`. Without DEBUG in the environment, the package is not even loaded. */
export function createTrace(name: string): Trace {
  if (process.env["DEBUG"] === undefined || process.env["DEBUG"] === "") {
    return isVerbose && name !== REQUESTS ? createStepTrace(name) : SILENT;
  }
  const debug: typeof debugPackage = createRequire(import.meta.url)("debug");
  if (!wantsColours(true)) Object.assign(debug.inspectOpts ?? {}, { colors: false });
  const trace = debug(`tsimgfs:${name}`);
  trace.log = (...values: unknown[]): void => writeLine(format(...values));
  return trace;
}

function createStepTrace(name: string): Trace {
  const tell = (template: string, ...values: unknown[]): void =>
    writeLine(printable(`tsimgfs: ${name}: ${format(template, ...values)}`));
  return Object.assign(tell, { enabled: true });
}

/** Write one line to standard error at once, whole; a closed or full one is no reason to fail. */
export function writeLine(line: string): void {
  try {
    fs.writeSync(STDERR, `${line}\n`);
  } catch {
    // Nobody reads it.
  }
}
