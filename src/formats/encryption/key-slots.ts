/**
 * The volume key of a LUKS area, and the key slots that have it: each slot keeps it encrypted with a
 * passphrase. Source: LUKS On-Disk Format Specification 1.2.3, "Master key recovery", "Adding new
 * passwords".
 */

import { TsimgfsError, UnsupportedError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { lazyModules } from "../lazy-modules.ts";
import { mergeKey, splitKey } from "./anti-forensic.ts";
import { type CipherSuite, type HashName, suiteOf } from "./cipher-suite.ts";
import {
  KEY_DIGEST_SIZE,
  KEY_SLOTS,
  type KeySlot,
  keyMaterialSize,
  LUKS_HEADER_SIZE,
  type LuksHeader,
  type LuksPlace,
  parseLuksHeader,
  SALT_SIZE,
  STRIPES,
} from "./luks-header.ts";
import { SectorCipher } from "./sector-cipher.ts";

/**
 * Our limit on the iterations of PBKDF2 that trying a passphrase may take, in all active slots: a minute or
 * two. What QEMU and cryptsetup choose for two seconds are some millions a slot.
 */
export const ITERATIONS_MAX = 2 ** 27;

/** A volume key, and which slot had it. */
export interface FoundKey {
  readonly key: Buffer;
  readonly slot: number;
}

/** Read and check the header. @throws {TsimgfsError} */
export function readLuksHeader(storage: Storage, place: LuksPlace): LuksHeader {
  const buffer = NativeBuffer.allocate(LUKS_HEADER_SIZE);
  storage.readAt(buffer, 0, LUKS_HEADER_SIZE, place.offset);
  return parseLuksHeader(buffer.bytes, place);
}

/**
 * Try a passphrase on all active slots, in their order.
 *
 * @returns the first volume key that is found, or undefined: the passphrase opens no slot
 * @throws {UnsupportedError} a cipher that we have not, or more work than the limit
 */
export function findVolumeKey(
  storage: Storage,
  place: LuksPlace,
  header: LuksHeader,
  passphrase: Uint8Array,
): FoundKey | undefined {
  refuseMuchWork(header, place.path);
  for (let slot = 0; slot < KEY_SLOTS; slot++) {
    const key = openSlot(storage, place, header, slot, passphrase);
    if (key !== undefined) return { key, slot };
  }
  return undefined;
}

/**
 * The volume key that one of some passphrases opens.
 *
 * @throws {TsimgfsError} EACCES: none of them does, or there is none
 * @throws {UnsupportedError} as `findVolumeKey`
 */
export function unlockVolumeKey(
  storage: Storage,
  place: LuksPlace,
  header: LuksHeader,
  secrets: readonly Uint8Array[],
): Buffer {
  refuseWithoutSecret(place.path, "LUKS", secrets);
  for (const secret of secrets) {
    const found = findVolumeKey(storage, place, header, secret);
    if (found !== undefined) return found.key;
  }
  return refusePassphrase(place.path, secrets);
}

/** Iterations of PBKDF2 that trying a passphrase takes at the most. */
export function iterationsOf({ slots, keyIterations }: LuksHeader): number {
  const active = slots.filter((slot) => slot.isActive);
  return active.reduce((all, { iterations }) => all + iterations + keyIterations, 0);
}

function refuseMuchWork(header: LuksHeader, path: string): void {
  const sum = iterationsOf(header);
  if (sum <= ITERATIONS_MAX) return;
  const reason = `its key slots want ${sum} iterations of PBKDF2, our limit is ${ITERATIONS_MAX}`;
  throw new UnsupportedError(path, reason);
}

/**
 * The volume key, if a slot is active and a passphrase opens it.
 *
 * @throws {UnsupportedError} a cipher that we have not
 */
export function openSlot(
  storage: Storage,
  { path, offset }: LuksPlace,
  header: LuksHeader,
  index: number,
  passphrase: Uint8Array,
): Buffer | undefined {
  const suite = suiteOf(header.cipher, path);
  const slot = header.slots[index];
  if (slot?.isActive !== true) return undefined;
  const size = keyMaterialSize(suite.keyBytes);
  const material = NativeBuffer.allocate(size);
  storage.readAt(material, 0, size, offset + slot.keyMaterialOffset);
  const cipher = cipherOfSlot(slot, header.hash, suite, passphrase);
  cipher.decrypt(material, 0, size, 0);
  cipher.free();
  const { hash } = header;
  const key = mergeKey(material.bytes, { size: suite.keyBytes, stripes: slot.stripes, hash });
  material.bytes.fill(0);
  const digest = digestOf(key, hash, header.keySalt, header.keyIterations);
  if (lazyModules.crypto.timingSafeEqual(digest, header.keyDigest)) return key;
  key.fill(0);
  return undefined;
}

/** What checks that a volume key is the right one. */
export function digestOf(
  key: Uint8Array,
  hash: HashName,
  salt: Uint8Array,
  iterations: number,
): Buffer {
  return lazyModules.crypto.pbkdf2Sync(key, salt, iterations, KEY_DIGEST_SIZE, hash);
}

/** What encrypts the key material of a slot. */
function cipherOfSlot(
  { salt, iterations }: Pick<KeySlot, "salt" | "iterations">,
  hash: HashName,
  suite: CipherSuite,
  passphrase: Uint8Array,
): SectorCipher {
  const key = lazyModules.crypto.pbkdf2Sync(passphrase, salt, iterations, suite.keyBytes, hash);
  try {
    return new SectorCipher(suite, key);
  } finally {
    key.fill(0);
  }
}

/** A slot that a passphrase opens, and its key material. */
export interface NewSlot {
  readonly slot: KeySlot;
  readonly material: NativeBuffer;
}

/**
 * Encrypt a volume key for a slot.
 *
 * @param keyMaterialOffset from the start of the header, bytes
 */
export function sealKey(
  key: Uint8Array,
  passphrase: Uint8Array,
  { suite, hash, iterations }: { suite: CipherSuite; hash: HashName; iterations: number },
  keyMaterialOffset: number,
): NewSlot {
  const salt = lazyModules.crypto.randomBytes(SALT_SIZE);
  const slot = { isActive: true, iterations, salt, keyMaterialOffset, stripes: STRIPES };
  const material = NativeBuffer.allocate(keyMaterialSize(key.length));
  const split = splitKey(key, STRIPES, hash);
  material.bytes.set(split);
  split.fill(0);
  const cipher = cipherOfSlot(slot, hash, suite, passphrase);
  cipher.encrypt(material, 0, material.length, 0);
  cipher.free();
  return { slot, material };
}

/** @throws {TsimgfsError} EACCES: there is no passphrase to try */
export function refuseWithoutSecret(
  path: string,
  method: "LUKS" | "AES",
  secrets: readonly Uint8Array[],
): void {
  if (secrets.length > 0) return;
  const reason = `is encrypted (${method}): its passphrase is needed, --secret FILE or TSIMGFS_SECRET`;
  throw new TsimgfsError("EACCES", path, reason);
}

/** @throws {TsimgfsError} always */
function refusePassphrase(path: string, secrets: readonly Uint8Array[]): never {
  const [first] = secrets;
  const endsLine = secrets.length === 1 && first?.at(-1) === 0x0a;
  const hint = endsLine ? "; it ends with a newline, which counts" : "";
  throw new TsimgfsError("EACCES", path, `no key slot opens with this passphrase${hint}`);
}
