/** The formats that there are: probing, reading their metadata, and attaching to an open image. */

import assert from "node:assert";
import { FormatError, UsageError } from "../errors.ts";
import type { Storage, WritableStorage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { AccessLock } from "../threads/access-lock.ts";
import {
  type BackingReference,
  type DataFileReference,
  FORMAT_NAMES,
  type FormatImage,
  type FormatName,
  type ThreadResources,
} from "./driver.ts";
import { cipherOf, type ImageKey } from "./encryption/image-key.ts";
import { setQcow2BackingFile } from "./qcow2/backing-name.ts";
import { isEncryptedQcow2, unlockQcow2 } from "./qcow2/encryption.ts";
import {
  conditionsOfQcow2,
  probeQcow2,
  type Qcow2Layout,
  readQcow2Layout,
} from "./qcow2/layout.ts";
import { Qcow2Image } from "./qcow2/qcow2-image.ts";
import { listQcow2Bitmaps, readQcow2Bitmap } from "./qcow2/stored-bitmaps.ts";
import {
  attachQcow2Writer,
  prepareQcow2Writing,
  type Qcow2Writing,
} from "./qcow2/writer/attach.ts";
import { repairQcow2BeforeWriting } from "./qcow2/writer/leftovers.ts";
import { setQedBackingFile } from "./qed/backing-name.ts";
import { conditionsOfQed, probeQed, type QedLayout, readQedLayout } from "./qed/layout.ts";
import { QedImage } from "./qed/qed-image.ts";
import { attachQedWriter, prepareQedWriting, type QedWriting } from "./qed/writer/attach.ts";
import { repairQedBeforeWriting } from "./qed/writer/leftovers.ts";
import { RawImage, type RawLayout } from "./raw/raw-image.ts";
import { RawWriter } from "./raw/raw-writer.ts";
import type { BitmapContents, FormatWriter, StoredBitmap } from "./writer.ts";

/** All that one thread tells another to attach the same open image: plain data. */
export type FormatLayout = RawLayout | Qcow2Layout | QedLayout;

/** Bytes at the start of a file that carry its magic. */
const PROBE_SIZE = 512;

export function isFormatName(name: string): name is FormatName {
  return FORMAT_NAMES.some((format) => format === name);
}

/** The format whose magic the file starts with, or undefined: then it may be raw. */
export function probeFormat(storage: Storage): "qcow2" | "qed" | undefined {
  const head = NativeBuffer.allocate(PROBE_SIZE);
  storage.readAt(head, 0, PROBE_SIZE, 0);
  if (probeQcow2(head.bytes)) return "qcow2";
  if (probeQed(head.bytes)) return "qed";
  return undefined;
}

/** What is kept in memory of an image's tables. */
export interface LayoutOptions {
  /** Bytes that its table cache may take. */
  readonly tableCacheMax: number;
  /** The L1 table may be kept whole: it does not move. */
  readonly keepsL1: boolean;
}

/**
 * Check and load the metadata of an image. Opens nothing that the image refers to.
 *
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function readLayout(
  format: FormatName,
  storage: Storage,
  options: LayoutOptions,
): FormatLayout {
  switch (format) {
    case "raw":
      return { format };
    case "qcow2":
      return readQcow2Layout(storage, options);
    case "qed":
      return readQedLayout(storage, options.tableCacheMax);
  }
}

/** The backing file that a layout names. */
export function backingFileOf(layout: FormatLayout): BackingReference | undefined {
  return layout.format === "raw" ? undefined : layout.backingFile;
}

/** The external data file that a layout names. */
export function dataFileOf(layout: FormatLayout): DataFileReference | undefined {
  return layout.format === "qcow2" ? layout.dataFile : undefined;
}

/** Whether the data of an image is encrypted. */
export function isEncrypted(layout: FormatLayout): boolean {
  return layout.format === "qcow2" && isEncryptedQcow2(layout);
}

/**
 * The key of an image's data.
 *
 * @param secrets passphrases; the legacy method of qcow2 takes the first
 * @param isFirstMeant if not, several are refused where nothing tells which is right
 * @returns undefined: it is not encrypted
 * @throws {TsimgfsError} EACCES: none of them opens it; EINVAL, ENOTSUP: its encryption
 */
export function unlockImage(
  layout: FormatLayout,
  storage: Storage,
  secrets: readonly Uint8Array[],
  isFirstMeant: boolean,
): ImageKey | undefined {
  if (layout.format !== "qcow2") return undefined;
  return unlockQcow2(layout, storage, secrets, isFirstMeant);
}

/** What the user should know of the state in which an image was left; reading it is safe. */
export function conditionsOf(layout: FormatLayout): string[] {
  switch (layout.format) {
    case "raw":
      return [];
    case "qcow2":
      return conditionsOfQcow2(layout);
    case "qed":
      return conditionsOfQed(layout);
  }
}

/** What an image is attached to. */
export interface ImageFiles {
  readonly storage: Storage;
  readonly dataStorage: Storage | undefined;
  /** Of an encrypted image whose data is used. */
  readonly key: ImageKey | undefined;
}

/** The image as one thread uses it. */
export function attachImage(
  layout: FormatLayout,
  { key, ...files }: ImageFiles,
  resources: ThreadResources,
): FormatImage {
  switch (layout.format) {
    case "raw":
      return new RawImage(files.storage);
    case "qcow2":
      return new Qcow2Image(layout, { ...files, cipher: key && cipherOf(key) }, resources);
    case "qed":
      return new QedImage(layout, files.storage, resources);
  }
}

/**
 * What a persistent bitmap of an image says.
 *
 * @throws {UsageError} there is none of that name, or it is inconsistent
 */
export function readBitmap(layout: FormatLayout, storage: Storage, name: string): BitmapContents {
  if (layout.format !== "qcow2") {
    throw new UsageError(storage.path, "only qcow2 has persistent bitmaps");
  }
  return readQcow2Bitmap(layout, storage, name);
}

/**
 * The persistent bitmaps of an image; undefined: images of its format, or version, have none.
 *
 * @throws {FormatError} the directory is damaged
 */
export function listBitmaps(
  layout: FormatLayout,
  storage: Storage,
): readonly StoredBitmap[] | undefined {
  return layout.format === "qcow2" ? listQcow2Bitmaps(layout, storage) : undefined;
}

/** Whether an image has persistent bitmaps. */
export function hasBitmaps(layout: FormatLayout): boolean {
  return layout.format === "qcow2" && layout.extensions.bitmaps !== undefined;
}

/**
 * Repair what the last writer left behind, if he did not end orderly.
 *
 * @returns what was repaired, for the user to know; then the layout must be read again
 * @throws {TsimgfsError} it cannot be repaired
 */
export function repairBeforeWriting(
  layout: FormatLayout,
  storage: WritableStorage,
): string | undefined {
  switch (layout.format) {
    case "raw":
      return undefined;
    case "qcow2":
      return repairQcow2BeforeWriting(layout, storage);
    case "qed":
      return repairQedBeforeWriting(layout, storage);
  }
}

/** What the writers of an image share between threads: plain data for structured clone. */
export type FormatWriting = Qcow2Writing | QedWriting | { readonly format: "raw" };

/**
 * Check that an image can be written to, and make what its writers share.
 *
 * @throws {TsimgfsError} it must not be written to
 */
export function prepareWriting(layout: FormatLayout, storage: WritableStorage): FormatWriting {
  switch (layout.format) {
    case "raw":
      return { format: "raw" };
    case "qcow2":
      return prepareQcow2Writing(layout, storage);
    case "qed":
      return prepareQedWriting(layout, storage);
  }
}

/** What a writer works on, in one thread. */
export interface WriterFiles {
  readonly storage: WritableStorage;
  /** The image file itself, unless there is an external data file. */
  readonly dataStorage: WritableStorage;
  readonly lock: AccessLock;
  /** Host space of what is freed is given back. */
  readonly punches: boolean;
  readonly requestMaintenance: (() => void) | undefined;
}

/** The writer of an image in one thread. */
export function attachWriter(
  shared: FormatWriting,
  image: FormatImage,
  files: WriterFiles,
): FormatWriter {
  if (shared.format === "qcow2" && image instanceof Qcow2Image) {
    return attachQcow2Writer(image, files, shared, files);
  }
  if (shared.format === "qed" && image instanceof QedImage) {
    return attachQedWriter(image, files.storage, shared, files);
  }
  assert(image instanceof RawImage, `a writer of ${shared.format} for ${image.format}`);
  return new RawWriter(image, files.storage, files.lock, files.requestMaintenance);
}

/**
 * The format of an image that the user names: as stated, else by its magic; without a known magic
 * only files named .raw or .img are raw, since anything may end up in the first bytes of a raw disk.
 *
 * @throws {FormatError} neither stated nor known
 */
export function determineFormat(storage: Storage, stated: FormatName | undefined): FormatName {
  const format = stated ?? probeFormat(storage);
  if (format !== undefined) return format;
  if (/\.(raw|img)$/i.test(storage.path)) return "raw";
  const what = storage.length === 0 ? "is empty" : "no known image format in it";
  throw new FormatError(
    storage.path,
    `${what}, and not named .raw or .img; state the format with --format`,
  );
}

/**
 * Let an image have another backing file, or none, durably: at every instant it has the old one or the new
 * one. Nobody else may write to its header meanwhile, and layouts that were read before are stale.
 *
 * @param backing as it is to be stored; undefined: none any more
 * @throws {TsimgfsError} the format cannot say it, or has no room for it; nothing is changed
 */
export function setBackingFile(
  format: FormatName,
  storage: WritableStorage,
  backing: BackingReference | undefined,
): void {
  switch (format) {
    case "raw":
      if (backing === undefined) return;
      throw new UsageError(storage.path, "raw images have no backing files");
    case "qcow2":
      setQcow2BackingFile(storage, backing);
      break;
    case "qed":
      setQedBackingFile(storage, backing);
      break;
  }
}

/**
 * Parse the value of --format.
 *
 * @throws {UsageError} not a format
 */
export function parseFormatName(text: string): FormatName {
  if (isFormatName(text)) return text;
  throw new UsageError("--format", `${text} is not one of ${FORMAT_NAMES.join(", ")}`);
}
