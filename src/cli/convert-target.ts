/** What a disk is copied to: a new image, or one that is there. */

import fs from "node:fs";
import { attachChain } from "../block/attach-disk.ts";
import type { PlannedImage } from "../block/create-image.ts";
import { closeChain, type OpenChain, openChain } from "../block/open-chain.ts";
import type { BackingPolicy } from "../block/referenced-file.ts";
import { TsimgfsError, UsageError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import type { FormatName } from "../formats/driver.ts";
import type { CacheMode } from "../storage/cache-mode.ts";
import { fileIdentity } from "../storage/file-identity.ts";
import { createImage, type StoppedCreation } from "./creation.ts";
import { PLAIN_WRITING } from "./offline-disk.ts";

export interface TargetOptions {
  readonly format: FormatName;
  readonly backingPolicy?: BackingPolicy | undefined;
  /** Passphrases of encrypted images. */
  readonly secrets: readonly Uint8Array[];
  readonly backingSecrets: readonly Uint8Array[];
  /** Threads that will write to it. */
  readonly threads: number;
  readonly cache?: CacheMode | undefined;
}

/**
 * Refuse to write to what is read.
 *
 * @param sources open chains
 * @throws {UsageError}
 */
export function refuseSources(paths: readonly string[], sources: readonly OpenChain[]): void {
  const read = new Map<string, string>();
  for (const { file, dataFile } of sources.flatMap(({ layers }) => layers)) {
    read.set(fileIdentity(file.path), file.path);
    if (dataFile !== undefined) read.set(fileIdentity(dataFile.path), dataFile.path);
  }
  for (const path of paths) {
    const source = read.get(fileIdentity(path));
    if (source === undefined) continue;
    throw new UsageError(path, `is written to, and is what is read from, as ${source}`);
  }
}

/** An image that is open for writing. */
export class ConvertTarget {
  readonly path: string;
  readonly chain: OpenChain;
  /** It was made new: it reads as zeros, or as its backing file. */
  readonly isNew: boolean;
  /** Files that were not there before. */
  readonly #newFiles: readonly string[];
  #isOpen = true;

  private constructor(
    path: string,
    options: TargetOptions,
    newFiles: readonly string[] | undefined,
  ) {
    this.path = path;
    this.chain = openForWriting(path, options);
    this.isNew = newFiles !== undefined;
    this.#newFiles = newFiles ?? [];
  }

  /** An image that is there, and keeps what it has. */
  static open(path: string, options: TargetOptions): ConvertTarget {
    return new ConvertTarget(path, options, undefined);
  }

  /**
   * Make an image; what was at its path is lost.
   *
   * @returns the target; or, if a signal came, what has become of it
   * @throws {TsimgfsError} no new file is left
   */
  static async create(
    plan: PlannedImage,
    options: TargetOptions,
  ): Promise<ConvertTarget | StoppedCreation> {
    const { path, dataFilePath } = plan;
    const paths = dataFilePath === undefined ? [path] : [path, dataFilePath];
    const newFiles = paths.filter((file) => !fs.existsSync(file));
    const stopped = await createImage(plan);
    if (stopped !== undefined) return stopped;
    try {
      return new ConvertTarget(path, options, newFiles);
    } catch (error) {
      newFiles.forEach(remove);
      throw error;
    }
  }

  /** Bytes. */
  get virtualSize(): number {
    return attachChain(this.chain.layers, { clusterCache: new ClusterCache() }).virtualSize;
  }

  /**
   * It reads as zeros where nothing is written. Of a block device nobody knows what it reads as, and what was
   * preallocated in an encrypted image reads as noise.
   */
  get readsAsZeros(): boolean {
    const { layers } = this.chain;
    const isFile = layers.every(({ file, dataFile }) => (dataFile ?? file).resizable);
    const isEncrypted = layers.some(({ key }) => key !== undefined);
    return this.isNew && layers.length === 1 && isFile && !isEncrypted;
  }

  /** Close the files. No thread uses them any more. A second time nothing happens. */
  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    closeChain(this.chain);
  }

  /**
   * As `discard`, when something has failed.
   *
   * @returns what to throw: it tells of an image that is not gone
   */
  discardAfter(error: unknown): unknown {
    if (this.#discard() || !(error instanceof TsimgfsError)) return error;
    // It was refused before anything was written.
    if (error instanceof UsageError) return error;
    const reason = `${error.reason}; ${this.path} was there before, and is not complete now`;
    return new TsimgfsError(error.code, error.path, reason, { cause: error });
  }

  /**
   * As `discard`, when it was stopped.
   *
   * @returns what has become of it: the end of a message
   */
  giveUp(): string {
    return this.#discard() ? "it was removed" : "it is not complete";
  }

  /**
   * What was begun is not complete, and is of no use: files that were not there before are removed.
   *
   * @returns whether the image is gone
   */
  #discard(): boolean {
    this.#newFiles.forEach(remove);
    return this.#newFiles.includes(this.path);
  }
}

function openForWriting(path: string, { threads, ...options }: TargetOptions): OpenChain {
  const { backingPolicy } = options;
  // There are no more threads than processors.
  const policy = { ...PLAIN_WRITING, ownProcessors: true };
  const writing = { policy, threads, bulk: true };
  return openChain(path, { ...options, backingPolicy, forceShare: false, writing });
}

function remove(path: string): void {
  try {
    fs.rmSync(fs.realpathSync(path));
  } catch {
    // The reason why it is not complete is the one to report.
  }
}
