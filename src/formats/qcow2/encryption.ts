/** How a qcow2 image is encrypted, and the key that a passphrase gives. Source: qcow2 specification, "Data encryption". */

import { FormatError, UsageError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import type { JsonValue } from "../driver.ts";
import { type CipherSuite, suiteOf } from "../encryption/cipher-suite.ts";
import { type ImageKey, shareKey } from "../encryption/image-key.ts";
import { readLuksHeader, refuseWithoutSecret, unlockVolumeKey } from "../encryption/key-slots.ts";
import type { LuksPlace } from "../encryption/luks-header.ts";
import { CRYPT_METHOD } from "./header.ts";
import type { Qcow2Layout } from "./layout.ts";

/** The legacy method: the key is the start of the passphrase itself. */
const LEGACY_AES: CipherSuite = {
  algorithm: "aes",
  keyBytes: 16,
  mode: "cbc",
  ivGenerator: "plain64",
  ivHash: undefined,
};

export function isEncryptedQcow2({ header }: Pick<Qcow2Layout, "header">): boolean {
  return header.crypt_method !== CRYPT_METHOD.none;
}

/**
 * Where the LUKS header is.
 *
 * @throws {FormatError} nowhere
 */
export function luksPlaceOf(layout: Pick<Qcow2Layout, "extensions">, path: string): LuksPlace {
  const { cryptoHeader } = layout.extensions;
  if (cryptoHeader === undefined) {
    throw new FormatError(
      path,
      "is encrypted with LUKS, but does not say where the LUKS header is",
    );
  }
  return { path, ...cryptoHeader };
}

/**
 * The key of an image.
 *
 * @param secrets passphrases: LUKS takes the first one that opens a key slot, the legacy method the first
 * @param isFirstMeant the first one is certainly meant for this image: the legacy method cannot tell
 * @returns undefined: it is not encrypted
 * @throws {TsimgfsError} EACCES: none of them, or there is none; EINVAL, ENOTSUP: the LUKS header
 */
export function unlockQcow2(
  layout: Qcow2Layout,
  storage: Storage,
  secrets: readonly Uint8Array[],
  isFirstMeant: boolean,
): ImageKey | undefined {
  if (!isEncryptedQcow2(layout)) return undefined;
  const { path } = storage;
  const isLuks = layout.header.crypt_method === CRYPT_METHOD.luks;
  // Whether we have the cipher comes first: no passphrase helps if not.
  const place = isLuks ? luksPlaceOf(layout, path) : undefined;
  const luks = place && readLuksHeader(storage, place);
  const suite = luks === undefined ? LEGACY_AES : suiteOf(luks.cipher, path);
  if (place !== undefined && luks !== undefined) {
    return shareKey(suite, "host", unlockVolumeKey(storage, place, luks, secrets));
  }
  refuseWithoutSecret(path, "AES", secrets);
  if (!isFirstMeant && secrets.length > 1) {
    const reason = `is encrypted with legacy AES, where a wrong passphrase cannot be told from the right one, and ${secrets.length} are given: say with --backing-secret which is that of a backing file`;
    throw new UsageError(path, reason);
  }
  const [first = new Uint8Array(0)] = secrets;
  return shareKey(suite, "guest", legacyKey(first));
}

function legacyKey(passphrase: Uint8Array): Uint8Array {
  const key = new Uint8Array(LEGACY_AES.keyBytes);
  key.set(passphrase.subarray(0, key.length));
  return key;
}

/**
 * What `info` says of the encryption, in the names of qemu-img.
 *
 * @throws {FormatError} the LUKS header cannot be right
 */
export function describeEncryption(layout: Qcow2Layout, storage: Storage): JsonValue {
  if (layout.header.crypt_method !== CRYPT_METHOD.luks) return { format: "aes" };
  const luks = readLuksHeader(storage, luksPlaceOf(layout, storage.path));
  const { cipher, mode, ivGenerator, ivHash } = luks.cipher;
  return {
    "ivgen-alg": ivGenerator,
    "hash-alg": luks.hash,
    "cipher-alg": cipher,
    uuid: luks.uuid,
    ...(ivGenerator === "essiv" && ivHash !== undefined ? { "ivgen-hash-alg": ivHash } : {}),
    format: "luks",
    "cipher-mode": mode,
    slots: luks.slots.map(({ isActive, iterations, keyMaterialOffset, stripes }) => ({
      active: isActive,
      ...(isActive ? { iters: iterations, stripes } : {}),
      "key-offset": keyMaterialOffset,
    })),
    "payload-offset": luks.payloadOffset,
    "master-key-iters": luks.keyIterations,
  };
}
