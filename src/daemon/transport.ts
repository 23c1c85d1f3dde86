/** How the requests for a mount come from the kernel: what all transports have in common. */

import { resolve } from "node:path";
import type { DaemonConfig } from "./config.ts";
import type { Served } from "./io-thread-start.ts";
import type { Mountpoint } from "./mountpoint.ts";

/** What those that serve requests ask for, and do not wait for. */
export interface UpkeepRequests {
  /** A device needs maintenance. */
  maintain(device: number): void;
  /** Somebody has changed the state of a device's streaming. */
  stream(device: number): void;
}

export interface Transport {
  /** What the user should know of it, a line each. */
  readonly warnings: readonly string[];
  /**
   * Mount, and let requests be served. Returns when they are.
   *
   * @throws {TsimgfsError} nothing is mounted
   */
  start(config: DaemonConfig, mountpoint: Mountpoint, served: Served): Promise<void>;
  /** Whether the kernel has the file system: mounted somewhere, or with files that somebody has open. */
  isConnected(): boolean;
  /** Resolves when the mount is gone, though requests may still be under way; rejects as `ended`. */
  gone(): Promise<void>;
  /** Resolves when the mount is gone, and nothing of it is used any more; rejects if it cannot be served. */
  ended(): Promise<void>;
  /** There is nothing to serve: let go of what was prepared. */
  abandon(): Promise<void>;
}

/** What fusermount and libfuse are told of a mount, commas in values escaped. */
export function mountArguments(config: DaemonConfig): string[] {
  const { allowOther, fsname, maxRead } = config.mountOptions;
  const [image] = config.images;
  const source =
    fsname ?? (config.images.length === 1 && image !== undefined ? resolve(image) : "tsimgfs");
  const options = [
    config.writing === undefined ? "ro" : "rw",
    "nosuid",
    "nodev",
    "default_permissions",
    "subtype=tsimgfs",
    `fsname=${source.replace(/[\\,]/g, "\\$&")}`,
  ];
  if (allowOther) options.push("allow_other");
  if (maxRead !== undefined) options.push(`max_read=${maxRead}`);
  return options;
}
