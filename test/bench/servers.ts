/**
 * The FUSE servers that are compared: starting one for an image, knowing that it serves, stopping
 * it.
 */

import { mkdir, stat } from "node:fs/promises";
import { CleanupStack } from "./cleanup-stack.ts";
import type { Launched, LaunchRequest } from "./launch.ts";
import { launchQemu } from "./launch-qemu.ts";
import { launchRawfuse } from "./launch-rawfuse.ts";
import { launchFuseNative, launchTsimgfs } from "./launch-tsimgfs.ts";
import { findMount } from "./mount-table.ts";
import { isAlive } from "./proc.ts";
import { removeTree } from "./remove-tree.ts";

export const SERVER_NAMES = ["tsimgfs", "fuse-native", "qsd", "c"] as const;
export type ServerName = (typeof SERVER_NAMES)[number];
/** Those that are compared unless others are asked for: our own second transport is none of them. */
export const DEFAULT_SERVERS: readonly ServerName[] = ["tsimgfs", "qsd", "c"];

export interface Server extends Launched {
  readonly name: ServerName;
  readonly virtualSize: number;
  stop(): Promise<void>;
}

const LAUNCHERS = {
  tsimgfs: launchTsimgfs,
  "fuse-native": launchFuseNative,
  qsd: launchQemu,
  c: launchRawfuse,
} as const;

export type StartRequest = Omit<LaunchRequest, "cleanup">;

/** Start a server and wait until its device is usable. On failure nothing of it is left. */
export async function startServer(name: ServerName, request: StartRequest): Promise<Server> {
  const cleanup = new CleanupStack();
  try {
    await mkdir(request.directory);
    cleanup.defer(() => removeTree(request.directory));
    const launched = await LAUNCHERS[name]({ ...request, cleanup });
    const server = {
      ...launched,
      name,
      virtualSize: request.image.virtualSize,
      stop: () => cleanup.unwind(),
    };
    await assertServing(server);
    return server;
  } catch (error) {
    await cleanup.unwind();
    throw error;
  }
}

/**
 * MAJOR:MINOR. Source: the kernel's new_encode_dev, 12 bits of major between the low 8 and the high
 * 12 of minor.
 */
function deviceNumber(dev: number): string {
  const major = (dev >>> 8) & 0xfff;
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xf_ff00);
  return `${major}:${minor}`;
}

/**
 * Throws unless the device is still the server's and not a plain file under it, and the server
 * lives.
 */
export async function assertServing(server: Server): Promise<void> {
  const mount = await findMount(server.mountPoint);
  if (mount === undefined || !mount.type.startsWith("fuse")) {
    throw new Error(`${server.name}: ${server.mountPoint} is not a FUSE mount any more`);
  }
  if (!(await isAlive(server.pid)))
    throw new Error(`${server.name}: its process ${server.pid} has died`);
  const { dev, size } = await stat(server.device);
  if (deviceNumber(dev) !== mount.device) {
    throw new Error(`${server.device} is on ${deviceNumber(dev)}, the mount is ${mount.device}`);
  }
  if (size !== server.virtualSize) {
    throw new Error(`${server.device} has ${size} bytes, the image ${server.virtualSize}`);
  }
}
