/** Signals that ask a daemon to end, and those that nobody has heard yet. */

import fs from "node:fs";
import { constants } from "node:os";

/** These end commands, and unmount; what is still open is served until it is closed. */
export const STOP_SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"] as const;

export type StopSignal = (typeof STOP_SIGNALS)[number];

/** Of all signals, as /proc/PID/status has them: bit n - 1 is signal n. */
const MASK = STOP_SIGNALS.reduce(
  (mask, name) => mask | (1n << BigInt(constants.signals[name] - 1)),
  0n,
);

/**
 * Whether one has come and waits: for the main thread to return from a system call that signals do not
 * interrupt, as a read of a file. Source: proc(5), /proc/PID/status.
 */
export function isStopSignalPending(): boolean {
  const status = fs.readFileSync("/proc/self/status", "latin1");
  return [...status.matchAll(/^(?:Sig|Shd)Pnd:\s*([0-9a-f]+)$/gm)].some(
    ([, pending]) => (BigInt(`0x${pending}`) & MASK) !== 0n,
  );
}
