/** Disks of images that this process opens itself, with the options that most commands have. */

import { closeChain, openChain, type WriteOptions } from "../block/open-chain.ts";
import { OpenDisk } from "../block/open-disk.ts";
import type { BackingPolicy } from "../block/referenced-file.ts";
import type { WritePolicy } from "../block/write-policy.ts";
import type { FormatName } from "../formats/driver.ts";
import type { CacheMode } from "../storage/cache-mode.ts";
import { LocalFile, type SharedFile } from "../storage/local-file.ts";
import { printNote } from "./print.ts";
import { type SecretOptions, secretsOf } from "./secrets.ts";

/** The options of commands, as commander names them. */
export interface ImageOptions extends SecretOptions {
  /** Default: by its magic. */
  readonly format?: FormatName | undefined;
  /** Default: by the owner of the image. */
  readonly backingPolicy?: BackingPolicy | undefined;
  /** As OpenOptions.onlyTables. */
  readonly onlyTables?: boolean | undefined;
  /** Default: writeback. */
  readonly cache?: CacheMode | undefined;
  /** Take no locks; for reading only. */
  readonly forceShare?: boolean | undefined;
}

/** How commands write that say nothing else: what is freed goes back to the host. */
export const PLAIN_WRITING: WritePolicy = {
  copyOnRead: false,
  detectZeroes: "off",
  discard: "unmap",
  growable: false,
};

/** The disk of an image that a command has opened. */
export type OfflineDisk = OpenDisk;

/**
 * Open an image with all below it, for this thread alone, and print the warnings about it.
 *
 * @param writing default: it is only read
 * @throws {TsimgfsError} EAGAIN: somebody uses it, or whatever is wrong with it; nothing is left open
 */
export function openOffline(
  path: string,
  options: ImageOptions,
  writing?: Omit<WriteOptions, "threads">,
): OfflineDisk {
  const { format, backingPolicy, cache, forceShare = false, onlyTables = false } = options;
  const chain = openChain(path, {
    format,
    backingPolicy,
    cache,
    forceShare,
    ...secretsOf(options),
    onlyTables,
    writing: writing && { ...writing, threads: 1 },
  });
  try {
    chain.warnings.forEach(printNote);
    return new OpenDisk(path, chain);
  } catch (error) {
    closeChain(chain);
    throw error;
  }
}

/** The same open file, with the length that it has by now. */
export function currentFile(file: SharedFile): LocalFile {
  const length = new LocalFile(file).currentLength();
  return new LocalFile({ ...file, length });
}
