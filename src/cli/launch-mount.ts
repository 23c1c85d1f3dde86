/** Starting the background process of a mount for a command that may be interrupted before the mount is there. */

import { setImmediate as nextTurn } from "node:timers/promises";
import type { DaemonConfig, TaskSecrets } from "../daemon/config.ts";
import type { PendingDaemon } from "../daemon/launch.ts";
import { heardSignal, hearStopSignals, nextSignal } from "./stop-signals.ts";

/**
 * Launch a daemon. From here on the signals that end commands do not end this process: one that comes
 * meanwhile ends the daemon.
 *
 * @returns the daemon's warnings; undefined: a signal has stopped it, and nothing is mounted
 * @throws as PendingDaemon.launch
 */
export async function launchUnlessStopped(
  daemon: PendingDaemon,
  config: DaemonConfig,
  secrets: TaskSecrets,
): Promise<readonly string[] | undefined> {
  hearStopSignals();
  const stopped = nextSignal().then(() => undefined);
  try {
    const warnings = await Promise.race([daemon.launch(config, secrets), stopped]);
    if (heardSignal() === undefined) return warnings;
  } catch (error) {
    // A terminal's may have met the daemon, too, which had not left this group yet: this process hears of it now.
    await nextTurn();
    if (heardSignal() === undefined) throw error;
  }
  await daemon.stop();
  return undefined;
}
