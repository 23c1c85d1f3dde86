/** A new LUKS area: a header, and the volume key in the first key slot. */

import type { WritableStorage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { lazyModules } from "../lazy-modules.ts";
import type { CipherSuite, HashName } from "./cipher-suite.ts";
import { digestOf, ITERATIONS_MAX, sealKey } from "./key-slots.ts";
import {
  encodeLuksHeader,
  encodeSlot,
  KEY_SLOTS,
  LUKS_HEADER_SIZE,
  SALT_SIZE,
  usualKeyMaterialOffset,
} from "./luks-header.ts";

/** The least number of iterations that there must be. Source: LUKS specification, "Constants". */
const ITERATIONS_MIN = 1000;
/** The check of the volume key takes an eighth of the time that a key slot does, as with QEMU. */
const DIGEST_SHARE = 8;
/** The speed of PBKDF2 is measured for this long at least, microseconds of processor time. */
const MEASURED_MIN_US = 20_000;

/** What an area is made of. */
export interface LuksWanted {
  readonly suite: CipherSuite;
  readonly hash: HashName;
  /** Processor time that a try of a passphrase is to take, ms. */
  readonly iterTimeMs: number;
  readonly passphrase: Uint8Array;
}

/** Bytes of an area with the keys of a suite. */
export function luksAreaSize({ keyBytes }: CipherSuite): number {
  return usualKeyMaterialOffset(KEY_SLOTS, keyBytes);
}

/**
 * Make a volume key, which is known to nobody then, and write its area: the header comes last.
 *
 * @param offset bytes; of a place that reads as zeros
 * @throws {StorageError}
 */
export function writeLuksArea(storage: WritableStorage, offset: number, wanted: LuksWanted): void {
  const { suite, hash, iterTimeMs, passphrase } = wanted;
  const iterations = iterationsFor(iterTimeMs, hash, suite.keyBytes);
  const keyIterations = Math.max(ITERATIONS_MIN, Math.floor(iterations / DIGEST_SHARE));
  const key = lazyModules.crypto.randomBytes(suite.keyBytes);
  try {
    const keySalt = lazyModules.crypto.randomBytes(SALT_SIZE);
    const keyDigest = digestOf(key, hash, keySalt, keyIterations);
    const uuid = lazyModules.crypto.randomUUID();
    const header = encodeLuksHeader({ hash, keyDigest, keySalt, keyIterations, uuid }, suite);
    const place = usualKeyMaterialOffset(0, suite.keyBytes);
    const { slot, material } = sealKey(key, passphrase, { suite, hash, iterations }, place);
    encodeSlot(header, 0, slot);
    storage.writeAt(material, 0, material.length, offset + place);
    const buffer = NativeBuffer.allocate(LUKS_HEADER_SIZE);
    buffer.bytes.set(header);
    storage.writeAt(buffer, 0, LUKS_HEADER_SIZE, offset);
  } finally {
    key.fill(0);
  }
}

/** Iterations of PBKDF2 that take some processor time here, as far as whoever opens it takes so many. */
export function iterationsFor(timeMs: number, hash: HashName, keyBytes: number): number {
  const salt = Buffer.alloc(SALT_SIZE);
  let iterations = ITERATIONS_MIN;
  let spentUs = 0;
  for (;;) {
    const before = process.cpuUsage();
    lazyModules.crypto.pbkdf2Sync(salt, salt, iterations, keyBytes, hash).fill(0);
    const { user, system } = process.cpuUsage(before);
    spentUs = user + system;
    if (spentUs >= MEASURED_MIN_US) break;
    iterations *= 2;
  }
  const wanted = Math.floor((iterations * timeMs * 1000) / spentUs);
  // All slots together are bounded, and each comes with a check of the volume key.
  const most = Math.floor(ITERATIONS_MAX / (2 * KEY_SLOTS));
  return Math.min(Math.max(ITERATIONS_MIN, wanted), most);
}
