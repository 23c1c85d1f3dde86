/** The transport that speaks the kernel's protocol itself: I/O threads read /dev/fuse. */

import fs from "node:fs";
import { mountFuse, unmountFuse } from "../fuse/fusermount.ts";
import { QueuePoll } from "../fuse/queue-poll.ts";
import { negotiate } from "../fuse/session.ts";
import type { DaemonConfig } from "./config.ts";
import type { Served } from "./io-thread-start.ts";
import { type FirstThread, IoThreads } from "./io-threads.ts";
import type { Mountpoint } from "./mountpoint.ts";
import { mountArguments, type Transport, type UpkeepRequests } from "./transport.ts";

export class DevFuseTransport implements Transport {
  readonly warnings: readonly string[] = [];
  readonly #threads: IoThreads;
  #queue: QueuePoll | undefined;

  constructor(firstThread: FirstThread, upkeep: UpkeepRequests) {
    this.#threads = new IoThreads(firstThread, upkeep);
  }

  async start(config: DaemonConfig, mountpoint: Mountpoint, served: Served): Promise<void> {
    const fd = mountFuse(mountpoint.path, mountArguments(config));
    try {
      this.#threads.serve(config.threads, served, fd, negotiate(fd));
    } catch (error) {
      fs.closeSync(fd);
      clearAway(mountpoint.path);
      throw error;
    }
    this.#queue = new QueuePoll(fd);
  }

  isConnected(): boolean {
    return this.#queue?.hasEnded() === false;
  }

  gone(): Promise<void> {
    return this.#threads.firstEnded();
  }

  ended(): Promise<void> {
    return this.#threads.ended();
  }

  abandon(): Promise<void> {
    return this.#threads.abandon();
  }
}

/** What is mounted there cannot be served. */
function clearAway(path: string): void {
  try {
    unmountFuse(path, { lazy: true });
  } catch {
    // It is gone already; why it is not served is the reason to report.
  }
}
