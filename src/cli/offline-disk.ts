/** Disks of images that this process opens itself, with the options that most commands have. */

import { attachDisk } from "../block/attach-disk.ts";
import type { Disk } from "../block/disk.ts";
import { closeChain, type OpenChain, openChain, type WriteOptions } from "../block/open-chain.ts";
import type { BackingPolicy } from "../block/referenced-file.ts";
import type { WritePolicy } from "../block/write-policy.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import type { FormatName } from "../formats/driver.ts";
import { LocalFile, type SharedFile } from "../storage/local-file.ts";
import { printMessage } from "./print.ts";
import { type SecretOptions, secretsOf } from "./secrets.ts";

/** The options of commands, as commander names them. */
export interface ImageOptions extends SecretOptions {
  /** Default: by its magic. */
  readonly format?: FormatName | undefined;
  /** Default: by the owner of the image. */
  readonly backingPolicy?: BackingPolicy | undefined;
  /** As OpenOptions.onlyTables. */
  readonly onlyTables?: boolean | undefined;
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

/** Files that are open, and the disk that they are. */
export interface OfflineDisk {
  readonly path: string;
  readonly chain: OpenChain;
  readonly disk: Disk;
  /**
   * End writing, if it was opened for that: what was written is durable. The disk is not used any more; the
   * files stay open, and locked. A second time nothing happens.
   *
   * @throws {TsimgfsError} what was written may not be durable
   */
  endWriting(): void;
  /**
   * As `endWriting`, and close the files.
   *
   * @throws {TsimgfsError} what was written may not be durable; the files are closed all the same
   */
  close(): void;
}

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
  const { format, backingPolicy, forceShare = false, onlyTables = false } = options;
  const chain = openChain(path, {
    format,
    backingPolicy,
    forceShare,
    secrets: secretsOf(options),
    onlyTables,
    writing: writing && { ...writing, threads: 1 },
  });
  try {
    chain.warnings.forEach(printMessage);
    return new OpenDisk(path, chain);
  } catch (error) {
    closeChain(chain);
    throw error;
  }
}

class OpenDisk implements OfflineDisk {
  readonly path: string;
  readonly chain: OpenChain;
  readonly disk: Disk;
  #isUsed = true;
  #isOpen = true;

  constructor(path: string, chain: OpenChain) {
    this.path = path;
    this.chain = chain;
    const resources = { clusterCache: new ClusterCache() };
    this.disk = attachDisk(chain, resources, { slot: 0, requestMaintenance: undefined });
  }

  endWriting(): void {
    if (!this.#isUsed) return;
    this.#isUsed = false;
    this.disk.close();
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    try {
      this.endWriting();
    } finally {
      closeChain(this.chain);
    }
  }
}

/** The same open file, with the length that it has by now. */
export function currentFile(file: SharedFile): LocalFile {
  const length = new LocalFile(file).currentLength();
  return new LocalFile({ ...file, length });
}
