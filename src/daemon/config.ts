/** What the daemon is asked to do: plain data, passed to the background process on its standard input. */

import type { BackingPolicy } from "../block/referenced-file.ts";
import type { WritePolicy } from "../block/write-policy.ts";
import type { FormatName } from "../formats/driver.ts";
import type { MountOptions } from "../fuse/mount-options.ts";

/** How requests come from the kernel: read from /dev/fuse, or through the npm package fuse-native. */
export const TRANSPORTS = ["dev-fuse", "fuse-native"] as const;
export type TransportName = (typeof TRANSPORTS)[number];

export interface DaemonConfig {
  /** Images as the user named them. */
  readonly images: readonly string[];
  /** As the user named it; it exists. */
  readonly mountpoint: string;
  readonly format: FormatName | undefined;
  readonly backingPolicy: BackingPolicy | undefined;
  readonly forceShare: boolean;
  /** How devices are written to; undefined: the mount is read-only. */
  readonly writing: WritePolicy | undefined;
  readonly transport: TransportName;
  /** I/O threads; 0: the main thread serves requests, alone. */
  readonly threads: number;
  /** The devices are the disks as they were at this snapshot, an id or a name; undefined: as they are. */
  readonly snapshot: string | undefined;
  /** Images get what they lack from their backing files, from the start. */
  readonly streaming: { readonly limit: number | undefined } | undefined;
  readonly mountOptions: MountOptions;
  readonly logFile: string | undefined;
}

/** Threads that serve requests: they have the first numbers, and the upkeep thread has the next one. */
export function servingThreads({ threads }: DaemonConfig): number {
  return Math.max(threads, 1);
}

/** Passphrases of encrypted images: see OpenOptions. */
export interface TaskSecrets {
  readonly secrets: readonly Uint8Array[];
  readonly backingSecrets: readonly Uint8Array[];
}

/** How long the passphrases of a task are, bytes: they follow the JSON. */
export interface SecretSizes {
  readonly secretSizes: readonly number[];
  readonly backingSecretSizes: readonly number[];
}

/**
 * A task as bytes: the configuration and the passphrases of encrypted images, which are no part of it, so
 * that they can be wiped.
 *
 *     JSON       the configuration, and the sizes of the passphrases
 *     0          one byte
 *     secrets    one after the other, those of backing files last
 */
export function encodeTask(config: DaemonConfig, { secrets, backingSecrets }: TaskSecrets): Buffer {
  const sizes: SecretSizes = {
    secretSizes: secrets.map(({ length }) => length),
    backingSecretSizes: backingSecrets.map(({ length }) => length),
  };
  const json = Buffer.from(JSON.stringify({ ...config, ...sizes }));
  return Buffer.concat([json, Buffer.of(0), ...secrets, ...backingSecrets]);
}

/** What `encodeTask` made; the secrets are parts of `task`. */
export function decodeTask(task: Buffer): { config: DaemonConfig; secrets: TaskSecrets } {
  const end = task.indexOf(0);
  const { secretSizes, backingSecretSizes, ...config }: DaemonConfig & SecretSizes = JSON.parse(
    task.toString("utf8", 0, end),
  );
  let at = end + 1;
  const take = (size: number): Buffer => {
    at += size;
    return task.subarray(at - size, at);
  };
  const secrets = secretSizes.map(take);
  return { config, secrets: { secrets, backingSecrets: backingSecretSizes.map(take) } };
}

/** What the background process tells the command that started it. */
export type Readiness =
  | { readonly kind: "ready"; readonly warnings: readonly string[] }
  | { readonly kind: "failed"; readonly message: string };
