/** `sleep`: let time pass, so that others can do something in between. */

import { setTimeout as wait } from "node:timers/promises";
import type { IoCall, IoCommand, IoContext } from "./command.ts";
import { IoFailure } from "./failure.ts";
import { parseInteger } from "./numbers.ts";

/** A timer takes no more, ms. */
const TIMER_MAX = 2 ** 31 - 1;

export const SLEEP_COMMAND: IoCommand = {
  name: "sleep",
  words: [1, 1],
  summary: "waits for the given value in milliseconds",
  run: sleep,
};

async function sleep(_io: IoContext, { words: [text = ""] }: IoCall): Promise<void> {
  const milliseconds = parseInteger(text);
  if (milliseconds === undefined || milliseconds < 0) {
    throw new IoFailure({ output: `${text} is not a valid number` });
  }
  for (let left = milliseconds; left > 0; left -= TIMER_MAX) await wait(Math.min(left, TIMER_MAX));
}
