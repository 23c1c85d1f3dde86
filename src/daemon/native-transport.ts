/** The transport through the npm package fuse-native: libfuse 2 reads /dev/fuse, and the main thread answers. */

import { TsimgfsError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { requireFusermount } from "../fuse/fusermount.ts";
import { FUSE_NATIVE, type FuseClass, loadFuseNative } from "../fuse/native/fuse-native.ts";
import { NativeMount } from "../fuse/native/mount.ts";
import { createHeartbeat } from "../threads/heartbeat.ts";
import { Tree } from "../tree/tree.ts";
import type { DaemonConfig } from "./config.ts";
import { letEnd, type Served } from "./io-thread-start.ts";
import type { FirstThread } from "./io-threads.ts";
import type { Mountpoint } from "./mountpoint.ts";
import { NativeWatchdog } from "./native-watchdog-start.ts";
import { mountArguments, type Transport, type UpkeepRequests } from "./transport.ts";

const NOTE = `${FUSE_NATIVE}: one thread, and no fallocate (discard, punched holes), SEEK_HOLE, page cache or shared mmap`;

export class NativeTransport implements Transport {
  readonly warnings: readonly string[] = [NOTE];
  readonly #upkeep: UpkeepRequests;
  readonly #Fuse: FuseClass;
  #mount: NativeMount | undefined;
  #watchdog: NativeWatchdog | undefined;

  /**
   * @param firstThread which is not needed
   * @throws {TsimgfsError} the package is not installed, or cannot be loaded
   */
  constructor({ start }: FirstThread, upkeep: UpkeepRequests) {
    letEnd(start);
    this.#upkeep = upkeep;
    this.#Fuse = loadFuseNative();
  }

  async start(
    config: DaemonConfig,
    mountpoint: Mountpoint,
    { tree, ownership }: Served,
  ): Promise<void> {
    if (mountpoint.isFile) {
      const reason = "is a file: fuse-native mounts on directories only; name a directory";
      throw new TsimgfsError("ENOTDIR", config.mountpoint, reason);
    }
    requireFusermount();
    const thread = {
      thread: 0,
      requestMaintenance: (device: number) => this.#upkeep.maintain(device),
      wakeStream: (device: number) => this.#upkeep.stream(device),
    };
    const server = {
      tree: new Tree(tree, { clusterCache: new ClusterCache() }, thread),
      ownership,
    };
    const options = mountArguments(config);
    // libfuse looks for itself whether the directory is empty, and fusermount3 does not know the option.
    if (config.mountOptions.nonempty) options.push("nonempty");
    const heartbeat = createHeartbeat();
    this.#mount = await NativeMount.make(this.#Fuse, server, {
      mountpoint: mountpoint.path,
      options,
      heartbeat,
    });
    this.#watchdog = new NativeWatchdog(mountpoint.path, heartbeat);
  }

  isConnected(): boolean {
    return this.#mount?.isConnected() ?? false;
  }

  gone(): Promise<void> {
    return this.ended();
  }

  async ended(): Promise<void> {
    await this.#mount?.ended();
    this.#watchdog?.end();
  }

  async abandon(): Promise<void> {
    // Nothing was prepared.
  }
}
