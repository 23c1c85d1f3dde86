// Runs a command that hears of a signal in the middle of what it writes.

import { withProgram } from "./foreground.ts";
import { atChange } from "./kill-at-write.ts";
import { MAIN } from "./repository.ts";

/** The signals that end a session, with the exit statuses that tell of them. */
export const STOPS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129, SIGQUIT: 131 } as const;
export type Stop = keyof typeof STOPS;

export interface Ending {
  /** Exit status, or the signal that has ended it. */
  readonly status: number | string;
  readonly output: string;
}

export interface StopMoment {
  /** The signal comes when this file has changed so many times; it need not be there at first. */
  readonly file: string;
  readonly changes: number;
  readonly signal?: Stop;
}

/** Runs `tsimgfs ARGS…`; it may end before the signal comes. */
export async function interrupted(
  args: readonly string[],
  { file, changes, signal = "SIGINT" }: StopMoment,
): Promise<Ending> {
  return await withProgram(process.execPath, [MAIN, ...args], async (program) => {
    const watcher = atChange(file, changes, () => {
      if (program.isRunning) program.kill(signal);
    });
    try {
      return { status: await program.end(60_000), output: program.output };
    } finally {
      watcher.close();
    }
  });
}
