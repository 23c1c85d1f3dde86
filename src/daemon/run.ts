/** The life of a mount: open the images, mount, serve until it is unmounted, close. */

import fs from "node:fs";
import { constants } from "node:os";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import { TsimgfsError } from "../errors.ts";
import { signal } from "../syscalls/libc.ts";
import { createCounters } from "../threads/counters.ts";
import { createInterruptions, interruptAll } from "../threads/interruptions.ts";
import { createRequestProgress } from "../threads/request-progress.ts";
import { createStreamStates } from "../threads/stream-state.ts";
import { createThreadCrew } from "../threads/thread-crew.ts";
import { writeLine } from "../trace.ts";
import { createRenderedFileMemory } from "../tree/description.ts";
import { createDeviceOpens } from "../tree/device-opens.ts";
import { createPartitionWindows } from "../tree/partition-windows.ts";
import { createTruncatedFiles } from "../tree/truncated-files.ts";
import { type DaemonConfig, servingThreads, type TaskSecrets } from "./config.ts";
import { DevFuseTransport } from "./dev-fuse-transport.ts";
import { type OpenDevices, openDevices } from "./devices.ts";
import { FAILURE_SHOWN_MS, showEnding } from "./endings.ts";
import { becomeIoFlusher } from "./io-flusher.ts";
import type { Served } from "./io-thread-start.ts";
import type { FirstThread } from "./io-threads.ts";
import { type Mountpoint, prepareMountpoint } from "./mountpoint.ts";
import { NativeTransport } from "./native-transport.ts";
import { OwnMount } from "./own-mount.ts";
import { redirectMessages } from "./standard-streams.ts";
import { STOP_SIGNALS, type StopSignal } from "./stop-signals.ts";
import { StuckEnd } from "./stuck-end.ts";
import type { Transport, UpkeepRequests } from "./transport.ts";
import { Upkeep } from "./upkeep.ts";

const SIG_DFL = 0;

/** Read-ahead of a mount that root makes, KiB: buffered reads are bound by the kernel's default of 128. */
const READ_AHEAD_KB = 1024;

/**
 * Mount and serve. Returns when the mount is gone and everything is closed; the signal that has ended it if that
 * came before `onReady` was called, which is not called any more then.
 *
 * @param secrets passphrases of encrypted images, which are wiped
 * @param firstThread ends with the mount, or with the failure
 * @param onReady called once, when the devices can be used
 * @throws {TsimgfsError} before `onReady`: nothing is left mounted or open
 */
export async function runDaemon(
  config: DaemonConfig,
  secrets: TaskSecrets,
  firstThread: FirstThread,
  onReady: (warnings: readonly string[]) => void,
): Promise<StopSignal | undefined> {
  let devices: OpenDevices | undefined;
  let upkeep: Upkeep;
  const transport = createTransport(config, firstThread, {
    maintain: (device) => upkeep.maintain(device),
    stream: (device) => upkeep.stream(device),
  });
  let stopOnSignals: SignalStop | undefined;
  let stuckEnd: StuckEnd | undefined;
  let mount: OwnMount;
  try {
    const mountpoint = prepareMountpoint(config.mountpoint, {
      images: config.images.length,
      nonempty: config.mountOptions.nonempty,
    });
    devices = openStoppably(config, secrets);
    if (config.logFile !== undefined) redirectMessages(config.logFile, devices);
    becomeIoFlusher();
    const served = describeServed(config, mountpoint, devices);
    upkeep = createUpkeep(config, served, devices);
    mount = new OwnMount(mountpoint.path, () => transport.isConnected());
    stuckEnd = new StuckEnd(mount, served.progress, () => upkeep.flush());
    stopOnSignals = new SignalStop(mount, stuckEnd, served.tree.interruptions);
    await transport.start(config, mountpoint, served);
    mount.find();
    // What came while this thread was busy is heard in a turn of the event loop from its begin to its end.
    await nextTurn();
    await nextTurn();
    stopOnSignals.expectMounted();
  } catch (error) {
    stuckEnd?.forget();
    stopOnSignals?.forget();
    devices?.close();
    await transport.abandon();
    throw error;
  }
  raiseReadAhead(config, mount);
  process.chdir("/");
  let early: StopSignal | undefined;
  try {
    const { streaming } = config;
    const refusals = streaming === undefined ? [] : await upkeep.startStreaming(streaming.limit);
    early = stopOnSignals.signal;
    if (early === undefined) {
      onReady([...transport.warnings, ...devices.warnings, ...refusals]);
    }
  } catch {
    // Whoever asked for the mount has been interrupted, and did not get it.
    stopOnSignals.unmount();
  }
  await serveToTheEnd(transport, upkeep, mount, stuckEnd);
  upkeep.stopStreaming();
  showEnding("closing", mount.path);
  const isDurable = await upkeep.close();
  stuckEnd.forget();
  devices.close();
  stopOnSignals.forget();
  if (!isDurable) {
    showEnding("failed", mount.path);
    // Long enough for whoever waits for the end to see it.
    await sleep(FAILURE_SHOWN_MS);
    const reason = "not all that was written could be made durable, or given back";
    throw new TsimgfsError("EIO", config.mountpoint, reason);
  }
  return early;
}

function createTransport(
  { transport }: DaemonConfig,
  firstThread: FirstThread,
  upkeep: UpkeepRequests,
): Transport {
  return transport === "fuse-native"
    ? new NativeTransport(firstThread, upkeep)
    : new DevFuseTransport(firstThread, upkeep);
}

function describeServed(
  config: DaemonConfig,
  mountpoint: Mountpoint,
  { devices }: OpenDevices,
): Served {
  const { uid, gid, umask } = config.mountOptions;
  const threads = servingThreads(config) + 1;
  return {
    tree: {
      devices,
      rootIsDevice: mountpoint.isFile,
      counters: createCounters(threads, devices.length),
      renderedFiles: createRenderedFileMemory(devices.length),
      streams: createStreamStates(devices.length),
      interruptions: createInterruptions(threads),
      deviceOpens: createDeviceOpens(devices.length),
      truncatedFiles: createTruncatedFiles(devices.length),
      partitionWindows: createPartitionWindows(devices.length),
      daemonPid: process.pid,
    },
    crew: createThreadCrew(),
    progress: createRequestProgress(threads),
    ownership: {
      uid: uid ?? process.getuid?.() ?? 0,
      gid: gid ?? process.getgid?.() ?? 0,
      umask,
    },
  };
}

function createUpkeep(
  config: DaemonConfig,
  { tree, progress }: Served,
  { devices, forgetBacking }: OpenDevices,
): Upkeep {
  const { counters, streams } = tree;
  const data = { devices, thread: servingThreads(config), counters, streams, progress };
  return new Upkeep(data, forgetBacking);
}

/**
 * Open all images. A signal ends the process meanwhile as the kernel does it, also while a medium has no answer:
 * nothing is mounted yet, and a thread that waits for a file hears of no other end.
 */
function openStoppably(config: DaemonConfig, secrets: TaskSecrets): OpenDevices {
  for (const name of STOP_SIGNALS) signal(constants.signals[name], SIG_DFL);
  return openDevices(config, secrets);
}

async function serveToTheEnd(
  transport: Transport,
  upkeep: Upkeep,
  mount: OwnMount,
  stuckEnd: StuckEnd,
): Promise<void> {
  try {
    await Promise.race([transport.gone(), upkeep.failed()]);
    stuckEnd.expect();
    await Promise.race([transport.ended(), upkeep.failed()]);
  } catch (error) {
    // Fail-stop: a mount that some threads serve and others do not would hang whoever uses it.
    const reason = error instanceof Error ? (error.stack ?? error.message) : String(error);
    writeLine(`tsimgfs: a thread failed: ${reason}`);
    try {
      await mount.unmount({ lazy: true });
    } finally {
      // The other threads are in read(2), which process.exit would wait for.
      process.kill(process.pid, "SIGKILL");
    }
  }
}

/** A stray one must not end the daemon, nor open Node's debugger. */
const IGNORED_SIGNALS = ["SIGUSR1", "SIGUSR2", "SIGALRM"] as const;

class SignalStop {
  readonly #mount: OwnMount;
  readonly #interruptions: SharedArrayBuffer;
  readonly #stuckEnd: StuckEnd;
  #isMounted = false;
  /** The first that came. */
  signal: StopSignal | undefined;
  readonly #hear = (signal: StopSignal): void => {
    this.signal ??= signal;
    this.#stuckEnd.expect();
    interruptAll(this.#interruptions);
    if (this.#isMounted) this.unmount();
  };
  readonly unmount = (): void => {
    this.#stuckEnd.expect();
    this.#unmount().catch((error: unknown) => {
      writeLine(`tsimgfs: ${error instanceof Error ? error.message : String(error)}`);
    });
  };

  constructor(mount: OwnMount, stuckEnd: StuckEnd, interruptions: SharedArrayBuffer) {
    this.#mount = mount;
    this.#interruptions = interruptions;
    this.#stuckEnd = stuckEnd;
    for (const signal of STOP_SIGNALS) process.on(signal, this.#hear);
    for (const signal of IGNORED_SIGNALS) process.on(signal, ignore);
  }

  /**
   * The mount is there, and served. Before, a signal would find nothing to unmount; or what waits for its first
   * request, and would wait for ever.
   */
  expectMounted(): void {
    this.#isMounted = true;
    if (this.signal !== undefined) this.unmount();
  }

  forget(): void {
    for (const signal of STOP_SIGNALS) process.off(signal, this.#hear);
    for (const signal of IGNORED_SIGNALS) process.off(signal, ignore);
  }

  async #unmount(): Promise<void> {
    const { path, place } = this.#mount;
    // Somebody has unmounted it, or a second signal came: whatever is there now is not ours.
    if (place === "gone") return;
    showEnding("ending", path);
    if (place === "covered") {
      const advice = "unmount that, and tell this process again to end";
      writeLine(`tsimgfs: ${path}: something else is mounted on top of it; ${advice}`);
      return;
    }
    try {
      await this.#mount.unmount({ lazy: false });
    } catch (error) {
      if (this.#mount.place !== "here") return;
      const busy = error instanceof TsimgfsError && error.code === "EBUSY";
      writeLine(
        busy
          ? `tsimgfs: ${path}: is in use; unmounted lazily, served until the last close`
          : `tsimgfs: ${error instanceof Error ? error.message : String(error)}`,
      );
      await this.#mount.unmount({ lazy: true });
    }
  }
}

function ignore(): void {
  // Having a listener is what counts.
}

function raiseReadAhead(config: DaemonConfig, { device }: OwnMount): void {
  const wanted = config.mountOptions.readAheadKb;
  try {
    fs.writeFileSync(`/sys/class/bdi/${device}/read_ahead_kb`, String(wanted ?? READ_AHEAD_KB));
  } catch {
    // Only root may; it is said where somebody asked for it.
    if (wanted !== undefined) {
      writeLine(`tsimgfs: ${config.mountpoint}: read_ahead_kb was not set, only root may set it`);
    }
  }
}
