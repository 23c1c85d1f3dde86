/** Opening an image with everything below it: files, locks, formats, policy, depth and loops. */

import assert from "node:assert";
import fs from "node:fs";
import { FormatError, TsimgfsError, UnsupportedError, UsageError } from "../errors.ts";
import type { FormatName } from "../formats/driver.ts";
import { type ImageKey, wipeKey } from "../formats/encryption/image-key.ts";
import {
  backingFileOf,
  conditionsOf,
  dataFileOf,
  determineFormat,
  type FormatLayout,
  hasBitmaps,
  isEncrypted,
  isFormatName,
  prepareWriting,
  probeFormat,
  readLayout,
  repairBeforeWriting,
  unlockImage,
} from "../formats/formats.ts";
import type { CacheMode } from "../storage/cache-mode.ts";
import { lockForReading, lockForWriting } from "../storage/image-lock.ts";
import { closeFile, LocalFile, type OpenMode, type SharedFile } from "../storage/local-file.ts";
import { createAccessLock } from "../threads/access-lock.ts";
import { createBusyRanges } from "../threads/busy-ranges.ts";
import { createTrace } from "../trace.ts";
import { createChainState } from "./backing-chain.ts";
import { createPendingCopies } from "./pending-copies.ts";
import {
  type BackingPolicy,
  defaultBackingPolicy,
  permittedPath,
  resolveReference,
} from "./referenced-file.ts";
import type { WritePolicy } from "./write-policy.ts";
import type { SharedWriting } from "./writing-parts.ts";

/** Our limit on the depth of backing chains, images. */
export const CHAIN_DEPTH_MAX = 64;

/** Table cache of the image itself, bytes: L2 tables of 256 GiB with 64 KiB clusters. */
const TABLE_CACHE_MAX = 32 * 1024 * 1024;
const TABLE_CACHE_MIN = 1024 * 1024;

/** Each image down the chain gets half of what the one above it has: all together at most 128 MiB. */
function tableCacheMax(depth: number): number {
  return Math.max(TABLE_CACHE_MIN, TABLE_CACHE_MAX / 2 ** depth);
}

export interface OpenOptions {
  /** The format of the image, stated by the user; default: by its magic. */
  readonly format: FormatName | undefined;
  /** Default: by the owner of the image. */
  readonly backingPolicy: BackingPolicy | undefined;
  /** Take no locks, and read what others may be writing. */
  readonly forceShare: boolean;
  /** How all files of the chain are read and written; default: writeback. */
  readonly cache?: CacheMode | undefined;
  /** Passphrases of encrypted images: of each, one must be among them. Default: there are none. */
  readonly secrets?: readonly Uint8Array[] | undefined;
  /**
   * Passphrases of the encrypted images below, one for each from the first backing file on: if there are any, no
   * other is tried there. Default: `secrets` are for all images.
   */
  readonly backingSecrets?: readonly Uint8Array[] | undefined;
  /** Data is neither read nor written: encrypted images need no passphrase. */
  readonly onlyTables?: boolean;
  /** How the image is written to; default: it is only read. */
  readonly writing?: WriteOptions | undefined;
  /** One of its backing files that is written to, too; default: they are only read. */
  readonly base?: BaseOptions | undefined;
  /** An image that this one is to be the backing file of: it must not be in the chain. */
  readonly overlay?: string | undefined;
}

export interface BaseOptions {
  /** The image, as the user names it; default: the first backing file. */
  readonly path: string | undefined;
  readonly writing: WriteOptions;
}

export interface WriteOptions {
  readonly policy: WritePolicy;
  /** Threads that will use the image. */
  readonly threads: number;
  /** Its data is written as a whole, and made durable at the end; default: who knows. */
  readonly bulk?: boolean | undefined;
}

/** One image of a chain: plain data for other threads. */
export interface SharedLayer {
  readonly file: SharedFile;
  readonly dataFile: SharedFile | undefined;
  readonly layout: FormatLayout;
  /** Of an encrypted image, whose data is used. */
  readonly key: ImageKey | undefined;
}

/** An image and all its backing files, open; the image itself comes first. */
export interface OpenChain {
  readonly layers: readonly SharedLayer[];
  /** What threads need to write to it; undefined: it is only read. */
  readonly writing: SharedWriting | undefined;
  /** Of the backing file that is written to, too; undefined: none is. */
  readonly base: OpenBase | undefined;
  /** What the user should know, one line each: `FILE: reason`. */
  readonly warnings: readonly string[];
}

/** A backing file that is written to. */
export interface OpenBase {
  /** In the layers of the chain. */
  readonly index: number;
  readonly writing: SharedWriting;
}

/**
 * Open `path`, its data file, and its backing files. Descriptors stay open until `closeChain`.
 *
 * @throws {TsimgfsError} nothing is left open
 */
export function openChain(path: string, options: OpenOptions): OpenChain {
  return new ChainOpener(path, options).open();
}

/** Close all files of a chain, which ends their locks. No thread may use it any more. */
export function closeChain(chain: OpenChain): void {
  chain.layers.forEach(closeLayer);
}

/** As `closeChain` for all but the image itself. Returns what is left. */
export function closeBelow<T extends Pick<OpenChain, "layers">>(chain: T): T {
  chain.layers.slice(1).forEach(closeLayer);
  return withoutBelow(chain);
}

/** What is left of a chain whose files below the image itself are closed. */
export function withoutBelow<T extends Pick<OpenChain, "layers">>(chain: T): T {
  return { ...chain, layers: chain.layers.slice(0, 1) };
}

function closeLayer({ file, dataFile, key }: SharedLayer): void {
  if (key !== undefined) wipeKey(key);
  closeFile(file);
  if (dataFile !== undefined) closeFile(dataFile);
}

/** What tells files apart, whatever their paths: of a device, the device. */
function identityOf({ dev, ino, rdev }: fs.Stats): string {
  return rdev !== 0 ? `device ${rdev}` : `${dev}:${ino}`;
}

/** What makes an image refer to another file. */
const RENAMING = {
  "backing file": "tsimgfs rebase -u",
  "data file": "tsimgfs amend -o data_file=",
} as const;

class ChainOpener {
  readonly #path: string;
  readonly #options: OpenOptions;
  readonly #policy: BackingPolicy;
  readonly #files: LocalFile[] = [];
  readonly #keys: ImageKey[] = [];
  readonly #layers: SharedLayer[] = [];
  readonly #warnings: string[] = [];
  /** The paths of the files that are open, by device and inode. */
  readonly #seen = new Map<string, string>();
  /** How the image that is being added is written to. */
  #writing: WriteOptions | undefined;
  /** How many backing files have got a passphrase of their own, so far. */
  #encryptedBelow = 0;
  /** The layer of the base, and its file. */
  #base: { readonly index: number; readonly file: LocalFile } | undefined;

  constructor(path: string, options: OpenOptions) {
    this.#path = path;
    this.#writing = options.writing;
    this.#options = options;
    this.#policy = options.backingPolicy ?? defaultBackingPolicy(path);
    if (options.overlay !== undefined) {
      this.#seen.set(identityOf(fs.statSync(options.overlay)), options.overlay);
    }
  }

  open(): OpenChain {
    const { writing, format } = this.#options;
    try {
      const file = this.#openFile(this.#path, this.#mode());
      this.#addLayers(file, determineFormat(file, format));
      this.#refuseUnusedSecrets();
      return {
        layers: this.#layers,
        writing: writing && this.#prepareWriting(0, file, writing),
        base: this.#prepareBase(),
        warnings: this.#warnings,
      };
    } catch (error) {
      this.#keys.forEach(wipeKey);
      for (const file of this.#files) file.close();
      throw error;
    }
  }

  #addLayers(first: LocalFile, firstFormat: FormatName): void {
    let file = first;
    let format = firstFormat;
    for (;;) {
      createTrace("open")("%s is %s", file.path, format);
      const { layout, key } = this.#readLayout(file, format);
      const dataFile = this.#openDataFile(layout, file.path);
      this.#layers.push({ file: file.share(), dataFile: dataFile?.share(), layout, key });
      const backing = backingFileOf(layout);
      if (backing === undefined) return;
      if (this.#layers.length >= CHAIN_DEPTH_MAX) {
        throw new FormatError(
          this.#path,
          `its backing chain is deeper than the limit of ${CHAIN_DEPTH_MAX} images`,
        );
      }
      const imagePath = file.path;
      this.#writing = this.#isBase(imagePath, backing.name)
        ? this.#options.base?.writing
        : undefined;
      file = this.#openReferenced(imagePath, "backing file", backing.name);
      if (this.#writing !== undefined) this.#base = { index: this.#layers.length, file };
      format = this.#backingFormat(file, imagePath, backing.format);
    }
  }

  #mode(): OpenMode {
    return this.#writing === undefined ? "read-only" : "read-write";
  }

  /** Whether a backing file is the one that is written to. */
  #isBase(imagePath: string, name: string): boolean {
    const { base } = this.#options;
    if (base === undefined || this.#base !== undefined) return false;
    if (base.path === undefined) return true;
    const found = fs.statSync(resolveReference(imagePath, name), { throwIfNoEntry: false });
    const wanted = fs.statSync(base.path, { throwIfNoEntry: false });
    return found !== undefined && wanted !== undefined && identityOf(found) === identityOf(wanted);
  }

  #readLayout(file: LocalFile, format: FormatName): Pick<SharedLayer, "layout" | "key"> {
    const depth = this.#layers.length;
    const isWritten = this.#writing !== undefined;
    const keepsL1 = this.#writing?.policy.growable !== true;
    const options = { tableCacheMax: tableCacheMax(depth), keepsL1 };
    const layout = readLayout(format, file, options);
    // Nothing is repaired with a passphrase that is wrong.
    const key = this.#unlock(layout, file);
    if (!isWritten) {
      this.#warnOfConditions(layout, file.path);
      return { layout, key };
    }
    const repaired = repairBeforeWriting(layout, file);
    if (repaired === undefined) return { layout, key };
    this.#warnings.push(`${file.path}: warning: ${repaired}`);
    return { layout: readLayout(format, file, options), key };
  }

  #unlock(layout: FormatLayout, file: LocalFile): ImageKey | undefined {
    if (this.#options.onlyTables === true || !isEncrypted(layout)) return undefined;
    const { secrets, isFirstMeant } = this.#candidates(file.path);
    const key = unlockImage(layout, file, secrets, isFirstMeant);
    if (key !== undefined) this.#keys.push(key);
    return key;
  }

  /** The passphrases of the image that is being added, which is encrypted. */
  #candidates(path: string): { secrets: readonly Uint8Array[]; isFirstMeant: boolean } {
    const { secrets = [], backingSecrets = [], overlay } = this.#options;
    if (this.#layers.length === 0 && overlay === undefined) return { secrets, isFirstMeant: true };
    if (backingSecrets.length === 0 || overlay !== undefined) {
      return { secrets: [...secrets, ...backingSecrets], isFirstMeant: false };
    }
    const secret = backingSecrets[this.#encryptedBelow++];
    if (secret !== undefined) return { secrets: [secret], isFirstMeant: true };
    const reason = `is encrypted backing file ${this.#encryptedBelow} of ${this.#path}, and has no --backing-secret: they are for all encrypted ones, from the first on`;
    throw new UsageError(path, reason);
  }

  /** One too many may mean that all are off by one, and legacy AES would not tell. */
  #refuseUnusedSecrets(): void {
    const { backingSecrets = [] } = this.#options;
    const used = this.#encryptedBelow;
    if (used === 0 || used === backingSecrets.length) return;
    const reason = `has ${used} encrypted backing files, and ${backingSecrets.length} --backing-secret are given`;
    throw new UsageError(this.#path, reason);
  }

  /** @throws {TsimgfsError} ENODATA: there is no backing file; or the base is not below the image */
  #prepareBase(): OpenBase | undefined {
    const { base } = this.#options;
    if (base === undefined) return undefined;
    if (this.#base === undefined) {
      if (base.path !== undefined) {
        throw new UsageError(this.#path, `${base.path} is not in its backing chain`);
      }
      throw new TsimgfsError("ENODATA", this.#path, "has no backing file");
    }
    const { index, file } = this.#base;
    return { index, writing: this.#prepareWriting(index, file, base.writing) };
  }

  #prepareWriting(index: number, file: LocalFile, writing: WriteOptions): SharedWriting {
    const layer = this.#layers[index];
    assert(layer !== undefined);
    if (writing.policy.bitmaps === "refuse" && hasBitmaps(layer.layout)) {
      const reason = "has persistent bitmaps, and is not to be written to then (--bitmaps)";
      throw new UnsupportedError(file.path, reason);
    }
    const format = prepareWriting(layer.layout, file);
    const above = this.#layers[index - 1];
    const stated = above === undefined ? this.#options.format : backingFileOf(above.layout)?.format;
    return {
      lock: createAccessLock(writing.threads),
      // One for what must be durable first, and one for what is copied.
      busy: createBusyRanges(2 * writing.threads),
      chain: createChainState(),
      copies: this.#layers.length > index + 1 ? createPendingCopies() : undefined,
      format,
      policy: writing.policy,
      // Only a stated format is beyond doubt whatever the first sector says.
      guardsMagic: format.format === "raw" && stated === undefined,
    };
  }

  #openFile(path: string, mode: OpenMode): LocalFile {
    const { cache, writing } = this.#options;
    const bulk = mode === "read-write" && writing?.bulk;
    const file = LocalFile.open(path, mode, { cache, bulk });
    this.#files.push(file);
    const identity = identityOf(fs.fstatSync(file.fd));
    const other = this.#seen.get(identity);
    if (other !== undefined) {
      throw new TsimgfsError("ELOOP", path, `is in its own backing chain, as ${other}`);
    }
    this.#seen.set(identity, path);
    if (mode === "read-write") lockForWriting(file);
    else if (!this.#options.forceShare) lockForReading(file);
    return file;
  }

  #openReferenced(imagePath: string, role: "backing file" | "data file", name: string): LocalFile {
    const path = permittedPath({ imagePath, role, name }, this.#policy);
    try {
      return this.#openFile(path, this.#mode());
    } catch (error) {
      if (!(error instanceof TsimgfsError)) throw error;
      const advice = error.code === "ENOENT" ? `; ${RENAMING[role]} names it anew` : "";
      const reason = `${error.reason} (${role} of ${imagePath}${advice})`;
      throw new TsimgfsError(error.code, path, reason, { cause: error });
    }
  }

  #openDataFile(layout: FormatLayout, imagePath: string): LocalFile | undefined {
    const reference = dataFileOf(layout);
    return reference && this.#openReferenced(imagePath, "data file", reference.name);
  }

  #backingFormat(file: LocalFile, imagePath: string, stated: string | undefined): FormatName {
    if (stated !== undefined) {
      if (isFormatName(stated)) return stated;
      throw new UnsupportedError(
        imagePath,
        `the backing file's format "${stated}" is not supported`,
      );
    }
    const format = probeFormat(file) ?? "raw";
    this.#warnings.push(
      `${imagePath}: warning: does not state the format of its backing file ${file.path}; taken for ${format}`,
    );
    return format;
  }

  #warnOfConditions(layout: FormatLayout, path: string): void {
    for (const condition of conditionsOf(layout)) {
      this.#warnings.push(`${path}: warning: ${condition}`);
    }
  }
}
