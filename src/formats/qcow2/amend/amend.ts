/** What can be changed of an image that exists, and the rules for it: QEMU's, in the words of the options. */

import { type Errno, TsimgfsError, UsageError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { BackingReference } from "../../driver.ts";
import {
  planSlotChange,
  type SlotChange,
  type SlotChanger,
} from "../../encryption/slot-changes.ts";
import { setQcow2BackingFile } from "../backing-name.ts";
import { checkDataFileName, setDataFileName } from "../data-file-name.ts";
import { luksPlaceOf } from "../encryption.ts";
import { AUTOCLEAR } from "../features.ts";
import { CRYPT_METHOD, REFCOUNT_ORDER_MAX } from "../header.ts";
import { type Qcow2Layout, readQcow2Layout } from "../layout.ts";
import { HeaderWriter } from "../writer/header-writer.ts";
import { analyseIntact } from "./intact-analysis.ts";
import { changeRefcountWidth, checkRefcountWidth } from "./refcount-width.ts";
import { checkDowngrade, downgradeToVersion2, upgradeToVersion3 } from "./version.ts";

/** Undefined: it stays as it is. */
export interface Qcow2Amendment {
  readonly version: 2 | 3 | undefined;
  readonly refcountBits: number | undefined;
  readonly lazyRefcounts: boolean | undefined;
  readonly dataFileRaw: boolean | undefined;
  /** Another name for the data file that it has. */
  readonly dataFile: string | undefined;
  /** Empty: none any more. */
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly keySlots: SlotChange | undefined;
}

/** What an amendment comes to for one image. */
export interface PlannedAmendment {
  /** One after the other, durably; after each of them the image is a valid one. */
  readonly steps: readonly ((storage: WritableStorage) => void)[];
  /** The last step, for which no zero clusters may be left over a backing file; undefined: there is none. */
  readonly downgrade: ((storage: WritableStorage) => void) | undefined;
  /** The image has a backing file after the steps. */
  readonly keepsBacking: boolean;
  /** Bitmaps do not go along. */
  readonly losesBitmaps: boolean;
}

/** The only width that version 2 has. */
const V2_REFCOUNT_BITS = 16;

/**
 * Check what is wanted, and plan it. Nothing is changed.
 *
 * @param secrets passphrases, for changes of key slots
 * @throws {UsageError} the image cannot have it
 * @throws {CorruptionError | UnsupportedError | StorageError}
 */
export function planQcow2Amendment(
  storage: WritableStorage,
  wanted: Qcow2Amendment,
  secrets: readonly Uint8Array[],
): PlannedAmendment {
  const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: false });
  const { header, dataFile } = layout;
  const version = wanted.version ?? header.version;
  checkWidths(storage.path, wanted, { version, refcountBits: layout.refcountBits });
  checkDataFile(storage.path, wanted, dataFile?.raw);
  const steps: ((storage: WritableStorage) => void)[] = [];
  const { keySlots } = wanted;
  if (keySlots !== undefined) steps.push(planKeySlots(storage, layout, keySlots, secrets));
  let keepsBacking = layout.backingFile !== undefined;
  if (version > header.version) steps.push(upgradeToVersion3);
  const { refcountBits, lazyRefcounts, dataFileRaw, dataFile: dataFileName } = wanted;
  if (refcountBits !== undefined && refcountBits !== layout.refcountBits) {
    checkRefcountWidth(storage, refcountBits);
    steps.push((file) => changeRefcountWidth(file, refcountBits));
  }
  if (dataFileName !== undefined) steps.push((file) => setDataFileName(file, dataFileName));
  if (dataFileRaw === false && dataFile?.raw === true) steps.push(clearRawDataFile);
  if (wanted.backingFile !== undefined || wanted.backingFormat !== undefined) {
    const backing = amendedBacking(storage.path, wanted, layout.backingFile);
    steps.push((file) => setQcow2BackingFile(file, backing));
    keepsBacking = backing !== undefined;
  }
  if (lazyRefcounts !== undefined && version === 3) {
    steps.push((file) => setLazyRefcounts(file, lazyRefcounts));
  }
  const isDowngrade = version < header.version;
  if (isDowngrade) checkDowngrade(storage);
  return {
    steps,
    downgrade: isDowngrade ? downgradeToVersion2 : undefined,
    keepsBacking,
    losesBitmaps: isDowngrade && layout.extensions.bitmaps !== undefined,
  };
}

function amendedBacking(
  path: string,
  wanted: Qcow2Amendment,
  current: BackingReference | undefined,
): BackingReference | undefined {
  const name = wanted.backingFile ?? current?.name ?? "";
  if (name !== "") return { name, format: wanted.backingFormat ?? current?.format };
  if (wanted.backingFormat === undefined) return undefined;
  throw new UsageError(path, "has no backing file whose format could be stated");
}

function planKeySlots(
  storage: WritableStorage,
  layout: Qcow2Layout,
  change: SlotChange,
  secrets: readonly Uint8Array[],
): SlotChanger {
  if (layout.header.crypt_method !== CRYPT_METHOD.luks) {
    const reason = "encrypt options cannot be amended: it is not encrypted with LUKS";
    throw new UsageError(storage.path, reason);
  }
  // Nothing else may lie where key material goes.
  analyseIntact(storage);
  return planSlotChange(storage, luksPlaceOf(layout, storage.path), change, secrets);
}

function checkWidths(
  path: string,
  wanted: Qcow2Amendment,
  current: { version: number; refcountBits: number },
): void {
  const refuse = (reason: string, code: Errno = "EINVAL"): never => {
    throw new TsimgfsError(code, path, reason);
  };
  const bits = wanted.refcountBits ?? current.refcountBits;
  const order = Math.log2(bits);
  if (!Number.isInteger(order) || order < 0 || order > REFCOUNT_ORDER_MAX) {
    refuse(`refcount_bits=${bits} is not a power of two in 1..${2 ** REFCOUNT_ORDER_MAX}`);
  }
  if (current.version >= 3) return;
  if (bits !== V2_REFCOUNT_BITS) {
    refuse(
      wanted.version === 2
        ? `compat=0.10 requires refcount_bits=${V2_REFCOUNT_BITS}, not ${bits}`
        : `refcount_bits=${bits} requires compat=1.1`,
    );
  }
  if (wanted.lazyRefcounts === true) refuse("lazy_refcounts=on requires compat=1.1");
}

/** @param isRaw undefined: there is no data file */
function checkDataFile(path: string, wanted: Qcow2Amendment, isRaw: boolean | undefined): void {
  if (wanted.dataFile !== undefined) {
    if (isRaw === undefined) {
      const reason = "data_file can only be set for images that use an external data file";
      throw new UsageError(path, reason);
    }
    checkDataFileName(path, wanted.dataFile);
  }
  if (wanted.dataFileRaw === true && isRaw !== true) {
    throw new UsageError(path, "data_file_raw cannot be set on existing images");
  }
}

function setLazyRefcounts(storage: WritableStorage, value: boolean): void {
  new HeaderWriter(storage, 3).setLazyRefcounts(value);
  storage.sync();
}

/** The data file may be another thing than the disk from now on. */
function clearRawDataFile(storage: WritableStorage): void {
  new HeaderWriter(storage, 3).clearAutoclear(AUTOCLEAR.bitmaps);
  storage.sync();
}
