/** The signals that end a command before its time, and the exit statuses that tell of them. */

import assert from "node:assert/strict";
import { constants } from "node:os";
import { STOP_SIGNALS, type StopSignal } from "../daemon/stop-signals.ts";

export { STOP_SIGNALS, type StopSignal };

/** Exit statuses of what a signal ended, as shells count. */
const SIGNAL_STATUS = 128;

/** The exit status of a command that `signal` has ended. */
export function signalStatus(signal: StopSignal): number {
  return SIGNAL_STATUS + constants.signals[signal];
}

let heard: StopSignal | undefined;
let isHearing = false;
const waiting: ((signal: StopSignal) => void)[] = [];

/**
 * From now on such a signal does not end the process: who works asks for it. For commands that leave something
 * behind if they just end.
 */
export function hearStopSignals(): void {
  if (isHearing) return;
  isHearing = true;
  for (const signal of STOP_SIGNALS) {
    process.on(signal, () => {
      heard ??= signal;
      for (const resolve of waiting.splice(0)) resolve(signal);
    });
  }
}

/** The first signal that came since `hearStopSignals`. */
export function heardSignal(): StopSignal | undefined {
  return heard;
}

/** Resolves with the first signal that came since `hearStopSignals`, or comes. */
export function nextSignal(): Promise<StopSignal> {
  return new Promise((resolve) => {
    if (heard === undefined) waiting.push(resolve);
    else resolve(heard);
  });
}

/** End the process that a signal was to end: it has been heard, and nothing is left. */
export function exitStopped(): never {
  assert(heard !== undefined);
  process.exit(signalStatus(heard));
}
