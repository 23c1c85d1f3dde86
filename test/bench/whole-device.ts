/** A fio job once over a device, but for the part on which the server warms up. */

import type { Target } from "./cell.ts";
import { type Direction, type FioResult, fioOnce } from "./fio.ts";
import { type Part, splitDevice } from "./warm-up.ts";

/** The job once over the device. Its first part is not measured. */
export async function onceOverDevice(
  target: Target,
  direction: Direction,
  args: readonly string[],
  prefix: readonly string[] = [],
): Promise<FioResult> {
  const runOn = ({ offset, size }: Part): Promise<FioResult> =>
    fioOnce(target, {
      direction,
      prefix,
      args: [...args, `--offset=${offset}`, `--size=${size}`],
    });
  const { warmUp, rest } = splitDevice(target.server.virtualSize);
  await runOn(warmUp);
  return runOn(rest);
}
