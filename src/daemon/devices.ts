/** Opening the images of a mount, and giving each its name in the tree. */

import fs from "node:fs";
import { resolve } from "node:path";
import { attachChain } from "../block/attach-disk.ts";
import { findSnapshot } from "../block/find-snapshot.ts";
import { closeChain, type OpenChain, openChain, withoutBelow } from "../block/open-chain.ts";
import { StorageError, UsageError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { isReadable } from "../storage/open-reason.ts";
import type { DeviceDescription } from "../tree/description.ts";
import { deviceNameOf } from "../tree/names.ts";
import { type DaemonConfig, servingThreads, type TaskSecrets } from "./config.ts";

export interface OpenDevices {
  readonly devices: readonly DeviceDescription[];
  readonly warnings: readonly string[];
  /** The backing files of a device are closed: no thread uses them any more. */
  forgetBacking(device: number): void;
  close(): void;
}

/**
 * Refuse two images whose devices would have the same name.
 *
 * @throws {UsageError} naming both
 */
function refuseEqualNames(images: readonly string[]): void {
  const byName = new Map<string, string>();
  for (const image of images) {
    const name = deviceNameOf(image);
    const other = byName.get(name);
    if (other !== undefined) {
      throw new UsageError(image, `its device would be named ${name}.raw, as that of ${other}`);
    }
    byName.set(name, image);
  }
}

function openImage(image: string, config: DaemonConfig, secrets: TaskSecrets): OpenChain {
  try {
    return openChain(image, {
      ...config,
      ...secrets,
      // The upkeep thread is one more: it looks after what the others need.
      writing: config.writing && { policy: config.writing, threads: servingThreads(config) + 1 },
    });
  } catch (error) {
    const isRefused = error instanceof StorageError && READ_ONLY_CODES.has(error.code);
    if (!isRefused || config.writing === undefined || !isReadable(error.path)) throw error;
    const reason = `${error.reason}; -r mounts it read-only`;
    throw new StorageError(error.code, error.path, reason, { cause: error });
  }
}

/** Failures of opening for writing that opening for reading may not have. */
const READ_ONLY_CODES: ReadonlySet<string> = new Set(["EACCES", "EPERM", "EROFS"]);

/**
 * Open all images.
 *
 * @param taskSecrets passphrases of encrypted images, which are wiped
 * @throws {TsimgfsError} nothing is left open
 */
export function openDevices(config: DaemonConfig, taskSecrets: TaskSecrets): OpenDevices {
  const chains: OpenChain[] = [];
  const close = (): void => {
    for (const chain of chains.splice(0)) closeChain(chain);
  };
  try {
    refuseEqualNames(config.images);
    const devices = config.images.map((image) => {
      const chain = openImage(image, config, taskSecrets);
      chains.push(chain);
      const { snapshot } = config;
      return describe(image, chain, snapshot === undefined ? snapshot : numberOf(chain, snapshot));
    });
    const forgetBacking = (device: number): void => {
      const chain = chains[device];
      if (chain !== undefined) chains[device] = withoutBelow(chain);
    };
    return { devices, warnings: chains.flatMap((chain) => chain.warnings), forgetBacking, close };
  } catch (error) {
    close();
    throw error;
  } finally {
    const { secrets, backingSecrets } = taskSecrets;
    for (const secret of [...secrets, ...backingSecrets]) secret.fill(0);
  }
}

/**
 * The number of a snapshot, which can be read.
 *
 * @throws {TsimgfsError}
 */
function numberOf({ layers }: OpenChain, snapshot: string): number {
  const chain = attachChain(layers, { clusterCache: new ClusterCache() });
  const number = findSnapshot(chain.image, snapshot);
  chain.openSnapshot(number);
  return number;
}

function describe(
  image: string,
  chain: OpenChain,
  snapshot: number | undefined,
): DeviceDescription {
  const [top] = chain.layers;
  if (top === undefined) throw new RangeError("a chain has at least one image");
  const stats = fs.fstatSync((top.dataFile ?? top.file).fd);
  return {
    name: deviceNameOf(image),
    imagePath: resolve(image),
    layers: chain.layers,
    writing: chain.writing,
    snapshot,
    allocatedSize: stats.isFile() ? stats.blocks * 512 : top.file.length,
    modifiedAt: stats.mtimeMs / 1000,
  };
}
