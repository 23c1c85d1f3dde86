/** Keeps a server and its load on one CPU: what a request costs, without the lottery of wake-ups. */

import type { Target } from "./cell.ts";
import { run } from "./run-command.ts";

/**
 * Call `measure` with the server pinned to one CPU. What it is given has to precede the load's
 * command line.
 */
export async function onOneCpu<T>(
  { server, cpus, signal }: Target,
  measure: (prefix: readonly string[]) => Promise<T>,
): Promise<T> {
  const [cpu = 0] = cpus;
  await pin(server.pid, [cpu], signal);
  try {
    return await measure(["taskset", "-c", String(cpu)]);
  } finally {
    await pin(server.pid, cpus);
  }
}

async function pin(pid: number, cpus: readonly number[], signal?: AbortSignal): Promise<void> {
  await run(
    ["taskset", "-a", "-c", "-p", cpus.join(","), String(pid)],
    signal === undefined ? {} : { signal },
  );
}
