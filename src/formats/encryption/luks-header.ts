/**
 * The LUKS header, version 1: a header, key slots in it, and their key material behind it. Offsets in it
 * count from its start, wherever in a file that is.
 *
 *     0        header, 592 bytes, with 8 key slots
 *     4096     key material of slot 0; each slot's starts at a multiple of 4096
 *     …
 *     payload  where the encrypted sectors of a whole device would start; in qcow2, the end of the area
 *
 * Source: LUKS On-Disk Format Specification 1.2.3, "The partition header".
 */

import { type Decoded, decode, encode, type Field, sizeOf } from "../../binary/struct.ts";
import { FormatError, hex } from "../../errors.ts";
import {
  type CipherSuite,
  findHash,
  type HashName,
  modeName,
  type NamedCipher,
  parseCipher,
} from "./cipher-suite.ts";

/** Of LUKS: what its offsets count in, bytes. */
export const LUKS_SECTOR_SIZE = 512;
/** Key material starts at a multiple of this, bytes. */
const KEY_MATERIAL_ALIGN = 4096;
export const KEY_SLOTS = 8;
/** The only number of stripes that QEMU and cryptsetup write, and QEMU reads. */
export const STRIPES = 4000;
/** Bytes of the check of the volume key, and of salts. */
export const KEY_DIGEST_SIZE = 20;
export const SALT_SIZE = 32;

const MAGIC = "LUKS\xba\xbe";
const VERSION = 1;

/** Big-endian. Texts are padded with zeros. */
// biome-ignore format: a table reads in columns
export const LUKS_HEADER = [
  ["version",          6, "u16", "1"],
  ["payload_offset", 104, "u32", "sectors"],
  ["key_bytes",      108, "u32", "bytes of the volume key"],
  ["mk_iterations",  164, "u32", "PBKDF2 iterations of the check of the volume key"],
] as const satisfies readonly Field[];

/** Texts and bytes of the header: where, and how many bytes. */
const MAGIC_AT = { start: 0, size: 6 };
const CIPHER_NAME = { start: 8, size: 32 };
const CIPHER_MODE = { start: 40, size: 32 };
const HASH_SPEC = { start: 72, size: 32 };
const KEY_DIGEST = { start: 112, size: KEY_DIGEST_SIZE };
const KEY_SALT = { start: 132, size: SALT_SIZE };
const UUID = { start: 168, size: 40 };

/** One key slot. */
// biome-ignore format: a table reads in columns
export const KEY_SLOT = [
  ["active",               0, "u32", "0x00ac71f3 or 0x0000dead"],
  ["iterations",           4, "u32", "of PBKDF2"],
  ["key_material_offset", 40, "u32", "sectors"],
  ["stripes",             44, "u32", "4000"],
] as const satisfies readonly Field[];
const SLOT_SALT = { start: 8, size: SALT_SIZE };
const FIRST_SLOT = 208;
/** Bytes. */
export const SLOT_SIZE = sizeOf(KEY_SLOT);
const SLOT_ACTIVE = 0x00ac_71f3;
const SLOT_INACTIVE = 0x0000_dead;

/** Bytes. */
export const LUKS_HEADER_SIZE = FIRST_SLOT + KEY_SLOTS * SLOT_SIZE;

export interface KeySlot {
  readonly isActive: boolean;
  /** Of PBKDF2. */
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** From the start of the header, bytes. */
  readonly keyMaterialOffset: number;
  readonly stripes: number;
}

export interface LuksHeader {
  readonly cipher: NamedCipher;
  readonly hash: HashName;
  readonly keyDigest: Uint8Array;
  readonly keySalt: Uint8Array;
  readonly keyIterations: number;
  readonly uuid: string;
  /** From the start of the header, bytes. */
  readonly payloadOffset: number;
  readonly slots: readonly KeySlot[];
}

/** Where a header is. */
export interface LuksPlace {
  readonly path: string;
  /** Bytes, in the file. */
  readonly offset: number;
  /** Bytes of the header with all key material. */
  readonly length: number;
}

/**
 * Decode and check a header.
 *
 * @param bytes LUKS_HEADER_SIZE of them
 * @throws {FormatError} it cannot be right
 */
export function parseLuksHeader(bytes: Uint8Array, place: LuksPlace): LuksHeader {
  const { path, offset } = place;
  const fail = (reason: string): never => {
    throw new FormatError(path, `LUKS header at ${hex(offset)}: ${reason}`, { offset });
  };
  if (Buffer.from(part(bytes, MAGIC_AT)).toString("latin1") !== MAGIC) fail("its magic is missing");
  const header = decode(LUKS_HEADER, bytes, "be");
  if (header.version !== VERSION) fail(`version ${header.version} is not ${VERSION}`);
  const hashName = text(bytes, HASH_SPEC);
  const hash = findHash(hashName) ?? fail(`hash "${hashName}" is not known`);
  const names = { cipher: text(bytes, CIPHER_NAME), mode: text(bytes, CIPHER_MODE) };
  const cipher = parseCipher({ ...names, keyBytes: header.key_bytes }, path);
  if (header.mk_iterations === 0) fail("the check of the volume key has 0 iterations");
  return {
    cipher,
    hash,
    keyDigest: part(bytes, KEY_DIGEST),
    keySalt: part(bytes, KEY_SALT),
    keyIterations: header.mk_iterations,
    uuid: text(bytes, UUID),
    payloadOffset: header.payload_offset * LUKS_SECTOR_SIZE,
    slots: parseSlots(bytes, header.key_bytes, place, fail),
  };
}

function parseSlots(
  bytes: Uint8Array,
  keyBytes: number,
  { length }: LuksPlace,
  fail: (reason: string) => never,
): KeySlot[] {
  const slots: KeySlot[] = [];
  for (let index = 0; index < KEY_SLOTS; index++) {
    const at = slotOffset(index);
    const slot: Decoded<typeof KEY_SLOT> = decode(KEY_SLOT, bytes, "be", at);
    const what = `key slot ${index}`;
    if (slot.active !== SLOT_ACTIVE && slot.active !== SLOT_INACTIVE) {
      fail(`${what} is neither active nor inactive: ${hex(slot.active)}`);
    }
    if (slot.stripes !== STRIPES) fail(`${what} has ${slot.stripes} stripes, not ${STRIPES}`);
    const isActive = slot.active === SLOT_ACTIVE;
    if (isActive && slot.iterations === 0) fail(`${what} has 0 iterations`);
    const keyMaterialOffset = slot.key_material_offset * LUKS_SECTOR_SIZE;
    const end = keyMaterialOffset + keyMaterialSize(keyBytes);
    if (keyMaterialOffset < LUKS_HEADER_SIZE || end > length) {
      fail(`${what} has its key material at ${hex(keyMaterialOffset)}, outside the header's area`);
    }
    const salt = part(bytes.subarray(at), SLOT_SALT);
    const { iterations, stripes } = slot;
    slots.push({ isActive, iterations, salt, keyMaterialOffset, stripes });
  }
  refuseOverlaps(slots, keyBytes, fail);
  return slots;
}

/** Erasing one slot must not touch another one. */
function refuseOverlaps(
  slots: readonly KeySlot[],
  keyBytes: number,
  fail: (reason: string) => never,
): void {
  const inOrder = slots.map((slot, index) => ({ start: slot.keyMaterialOffset, index }));
  inOrder.sort((a, b) => a.start - b.start);
  for (const [at, { start, index }] of inOrder.entries()) {
    const before = inOrder[at - 1];
    if (before === undefined || start >= before.start + keyMaterialSize(keyBytes)) continue;
    fail(`the key material of slots ${before.index} and ${index} overlaps`);
  }
}

/** Bytes of key material in a slot, whole sectors. */
export function keyMaterialSize(keyBytes: number): number {
  return Math.ceil((keyBytes * STRIPES) / LUKS_SECTOR_SIZE) * LUKS_SECTOR_SIZE;
}

/** Where QEMU and cryptsetup put a slot's key material; of the slot behind the last one, the payload. */
export function usualKeyMaterialOffset(index: number, keyBytes: number): number {
  const size = Math.ceil(keyMaterialSize(keyBytes) / KEY_MATERIAL_ALIGN) * KEY_MATERIAL_ALIGN;
  return KEY_MATERIAL_ALIGN + index * size;
}

/** A header without active slots, but for those that `encodeSlot` adds. */
export function encodeLuksHeader(
  header: Omit<LuksHeader, "cipher" | "slots" | "payloadOffset">,
  suite: CipherSuite,
): Buffer {
  const bytes = Buffer.alloc(LUKS_HEADER_SIZE);
  const { algorithm, keyBytes } = suite;
  bytes.write(MAGIC, MAGIC_AT.start, "latin1");
  bytes.write(algorithm, CIPHER_NAME.start);
  bytes.write(modeName(suite), CIPHER_MODE.start);
  bytes.write(header.hash, HASH_SPEC.start);
  bytes.write(header.uuid, UUID.start);
  bytes.set(header.keyDigest, KEY_DIGEST.start);
  bytes.set(header.keySalt, KEY_SALT.start);
  encode(
    LUKS_HEADER,
    {
      version: VERSION,
      payload_offset: usualKeyMaterialOffset(KEY_SLOTS, keyBytes) / LUKS_SECTOR_SIZE,
      key_bytes: keyBytes,
      mk_iterations: header.keyIterations,
    },
    bytes,
    "be",
  );
  for (let index = 0; index < KEY_SLOTS; index++) {
    encodeSlot(bytes, index, {
      isActive: false,
      iterations: 0,
      salt: new Uint8Array(SALT_SIZE),
      keyMaterialOffset: usualKeyMaterialOffset(index, keyBytes),
      stripes: STRIPES,
    });
  }
  return bytes;
}

/** Where a key slot is, from the start of the header, bytes. */
export function slotOffset(index: number): number {
  return FIRST_SLOT + index * SLOT_SIZE;
}

/** Put a slot into a header. */
export function encodeSlot(header: Uint8Array, index: number, slot: KeySlot): void {
  const at = slotOffset(index);
  encode(
    KEY_SLOT,
    {
      active: slot.isActive ? SLOT_ACTIVE : SLOT_INACTIVE,
      iterations: slot.iterations,
      key_material_offset: slot.keyMaterialOffset / LUKS_SECTOR_SIZE,
      stripes: slot.stripes,
    },
    header,
    "be",
    at,
  );
  header.set(slot.salt, at + SLOT_SALT.start);
}

interface Part {
  readonly start: number;
  readonly size: number;
}

function part(bytes: Uint8Array, { start, size }: Part): Uint8Array {
  return bytes.slice(start, start + size);
}

function text(bytes: Uint8Array, place: Part): string {
  const characters = Buffer.from(part(bytes, place));
  const end = characters.indexOf(0);
  return characters.subarray(0, end < 0 ? characters.length : end).toString("latin1");
}
