/** The transport that speaks the kernel's protocol itself: I/O threads read /dev/fuse. */

import fs from "node:fs";
import { mountFuse, unmountFuse } from "../fuse/fusermount.ts";
import { negotiate } from "../fuse/session.ts";
import type { DaemonConfig } from "./config.ts";
import type { Served } from "./io-thread-start.ts";
import { type FirstThread, IoThreads } from "./io-threads.ts";
import type { Mountpoint } from "./mountpoint.ts";
import { mountArguments, type Transport, type UpkeepRequests } from "./transport.ts";

export class DevFuseTransport implements Transport {
  readonly warnings: readonly string[] = [];
  readonly #threads: IoThreads;

  constructor(firstThread: FirstThread, upkeep: UpkeepRequests) {
    this.#threads = new IoThreads(firstThread, upkeep);
  }

  async start(config: DaemonConfig, mountpoint: Mountpoint, served: Served): Promise<void> {
    const fd = mountFuse(mountpoint.path, mountArguments(config));
    try {
      this.#threads.serve(config.threads, served, fd, negotiate(fd));
    } catch (error) {
      unmountFuse(mountpoint.path, { lazy: true });
      fs.closeSync(fd);
      throw error;
    }
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
