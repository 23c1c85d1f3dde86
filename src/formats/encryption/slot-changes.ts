/**
 * Key slots of a LUKS area that are made active and inactive. Whatever a crash leaves, the slots that were
 * active before and stay so open the image: key material is durable before its slot is active, and a slot is
 * durably inactive before its key material is overwritten. Source: LUKS On-Disk Format Specification 1.2.3,
 * "Adding new passwords", "Password revocation"; the rules are QEMU's.
 */

import { sizeOf } from "../../binary/struct.ts";
import { UsageError } from "../../errors.ts";
import type { Storage, WritableStorage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { lazyModules } from "../lazy-modules.ts";
import { suiteOf } from "./cipher-suite.ts";
import {
  ITERATIONS_MAX,
  iterationsOf,
  openSlot,
  readLuksHeader,
  sealKey,
  unlockVolumeKey,
} from "./key-slots.ts";
import { iterationsFor } from "./luks-area.ts";
import {
  encodeSlot,
  KEY_SLOT,
  type KeySlot,
  keyMaterialSize,
  LUKS_HEADER_SIZE,
  type LuksHeader,
  type LuksPlace,
  SALT_SIZE,
  SLOT_SIZE,
  slotOffset,
} from "./luks-header.ts";

/**
 * How often key material is overwritten, each time durably. Some disks keep remains of what was there
 * before; those that write elsewhere each time keep the old one however often that is done.
 */
const ERASE_PASSES = 4;

/** What is to become of the key slots. */
export type SlotChange =
  | {
      readonly state: "active";
      readonly newSecret: Uint8Array;
      /** Index in 0..7; undefined: the first one that is inactive. */
      readonly slot: number | undefined;
      /** Processor time that a try of the passphrase is to take, ms. */
      readonly iterTimeMs: number;
    }
  | {
      readonly state: "inactive";
      /** Those that it opens; undefined: the one that `slot` says. */
      readonly oldSecret: Uint8Array | undefined;
      /** Index in 0..7; with `oldSecret`, it must open this one. */
      readonly slot: number | undefined;
    };

/** Changes the key slots, durably. */
export type SlotChanger = (storage: WritableStorage) => void;

/**
 * Check a change, and prepare all of it that takes time. Nothing is written.
 *
 * @param secrets passphrases, one of which must open the image
 * @throws {UsageError} the slot is active already, or would be the last one to be made inactive
 * @throws {TsimgfsError} EACCES: none of the passphrases opens the image
 */
export function planSlotChange(
  storage: Storage,
  place: LuksPlace,
  change: SlotChange,
  secrets: readonly Uint8Array[],
): SlotChanger {
  const header = readLuksHeader(storage, place);
  const key = unlockVolumeKey(storage, place, header, secrets);
  try {
    return change.state === "active"
      ? planActivation(place, header, change, key)
      : planErasure(storage, place, header, change);
  } finally {
    key.fill(0);
  }
}

function planActivation(
  place: LuksPlace,
  header: LuksHeader,
  { newSecret, slot, iterTimeMs }: Extract<SlotChange, { state: "active" }>,
  key: Uint8Array,
): SlotChanger {
  const { path } = place;
  const { hash } = header;
  const index = slot ?? header.slots.findIndex(({ isActive }) => !isActive);
  const old = header.slots[index];
  if (old === undefined) throw new UsageError(path, "all key slots are active: erase one first");
  if (old.isActive) throw new UsageError(path, `key slot ${index} is active: erase it first`);
  const suite = suiteOf(header.cipher, path);
  const iterations = iterationsFor(iterTimeMs, hash, suite.keyBytes);
  const sum = iterationsOf(header) + iterations + header.keyIterations;
  if (sum > ITERATIONS_MAX) {
    const reason = `its key slots would want ${sum} iterations of PBKDF2, our limit is ${ITERATIONS_MAX}: use a smaller encrypt.iter-time`;
    throw new UsageError(path, reason);
  }
  const parameters = { suite, hash, iterations };
  const sealed = sealKey(key, newSecret, parameters, old.keyMaterialOffset);
  return (storage) => {
    const { material, slot: active } = sealed;
    storage.writeAt(material, 0, material.length, place.offset + active.keyMaterialOffset);
    writeSlot(storage, place, index, { ...active, isActive: false });
    storage.sync();
    writeState(storage, place, index, active);
    storage.sync();
  };
}

function planErasure(
  storage: Storage,
  place: LuksPlace,
  header: LuksHeader,
  change: Extract<SlotChange, { state: "inactive" }>,
): SlotChanger {
  const erased = slotsToErase(storage, place, header, change);
  const active = header.slots.filter(({ isActive }) => isActive).length;
  if (erased.length === active) {
    const which = active === 1 ? "the only active key slot" : "all active key slots";
    const reason = `this would erase ${which}, and with it all data: refused`;
    throw new UsageError(place.path, reason);
  }
  return (file) => {
    for (const [index, slot] of erased) writeState(file, place, index, inactive(slot));
    file.sync();
    const material = NativeBuffer.allocate(keyMaterialSize(header.cipher.keyBytes));
    for (let pass = 0; pass < ERASE_PASSES; pass++) {
      for (const [index, slot] of erased) {
        lazyModules.crypto.randomFillSync(material.bytes);
        const { length } = material;
        file.writeAt(material, 0, length, place.offset + slot.keyMaterialOffset);
        if (pass === 0) writeSlot(file, place, index, inactive(slot));
      }
      file.sync();
    }
  };
}

/** With their indexes; at least one. */
function slotsToErase(
  storage: Storage,
  place: LuksPlace,
  header: LuksHeader,
  { oldSecret, slot: wanted }: Extract<SlotChange, { state: "inactive" }>,
): (readonly [index: number, slot: KeySlot])[] {
  const { path } = place;
  const active = [...header.slots.entries()].filter(([index, { isActive }]) => {
    return isActive && (wanted === undefined || index === wanted);
  });
  if (active.length === 0) throw new UsageError(path, `key slot ${wanted} is inactive already`);
  if (oldSecret === undefined) return active;
  const opened = active.filter(([index]) => {
    const key = openSlot(storage, place, header, index, oldSecret);
    key?.fill(0);
    return key !== undefined;
  });
  if (opened.length > 0) return opened;
  const which = wanted === undefined ? "no key slot" : `not key slot ${wanted}`;
  throw new UsageError(path, `the passphrase of encrypt.old-secret opens ${which}`);
}

/** Nothing is left of what it was. */
function inactive(slot: KeySlot): KeySlot {
  return { ...slot, isActive: false, iterations: 0, salt: new Uint8Array(SALT_SIZE) };
}

function writeSlot(storage: WritableStorage, place: LuksPlace, index: number, slot: KeySlot): void {
  writePart(storage, place, index, slot, SLOT_SIZE);
}

/** Whether it is active, alone: a whole slot may lie in two sectors, of which a crash keeps one. */
function writeState(
  storage: WritableStorage,
  place: LuksPlace,
  index: number,
  slot: KeySlot,
): void {
  writePart(storage, place, index, slot, sizeOf(KEY_SLOT, "active"));
}

function writePart(
  storage: WritableStorage,
  place: LuksPlace,
  index: number,
  slot: KeySlot,
  length: number,
): void {
  const buffer = NativeBuffer.allocate(LUKS_HEADER_SIZE);
  encodeSlot(buffer.bytes, index, slot);
  const start = slotOffset(index);
  storage.writeAt(buffer, start, length, place.offset + start);
}
