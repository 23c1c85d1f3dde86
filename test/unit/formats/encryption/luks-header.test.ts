/** LUKS headers laid out by hand from the specification: what cannot be right is refused, by name. */

import { describe, expect, it } from "vitest";
import { suiteOf } from "../../../../src/formats/encryption/cipher-suite.ts";
import { findVolumeKey } from "../../../../src/formats/encryption/key-slots.ts";
import { parseLuksHeader } from "../../../../src/formats/encryption/luks-header.ts";
import { MemoryStorage } from "../../memory-storage.ts";

const SIZE = 592;
const SLOTS = 8;
const FIRST_SLOT = 208;
const SLOT_SIZE = 48;
const ACTIVE = 0x00ac71f3;
const INACTIVE = 0x0000dead;
/** Sectors of each slot's key material, and of the area before the first one. */
const SLOT_SECTORS = 504;
const START_SECTORS = 8;

const PLACE = { path: "disk", offset: 0x40000, length: 2068480 };

/** aes-256-xts-plain64 with sha256; the first slot is active. */
function headerBytes(): Buffer {
  const bytes = Buffer.alloc(SIZE);
  bytes.write("LUKS\xba\xbe", 0, "latin1");
  bytes.writeUInt16BE(1, 6);
  bytes.write("aes", 8);
  bytes.write("xts-plain64", 40);
  bytes.write("sha256", 72);
  bytes.writeUInt32BE(START_SECTORS + SLOTS * SLOT_SECTORS, 104);
  bytes.writeUInt32BE(64, 108);
  bytes.writeUInt32BE(1000, 164);
  for (let slot = 0; slot < SLOTS; slot++) {
    const at = FIRST_SLOT + slot * SLOT_SIZE;
    bytes.writeUInt32BE(slot === 0 ? ACTIVE : INACTIVE, at);
    bytes.writeUInt32BE(slot === 0 ? 1000 : 0, at + 4);
    bytes.writeUInt32BE(START_SECTORS + slot * SLOT_SECTORS, at + 40);
    bytes.writeUInt32BE(4000, at + 44);
  }
  return bytes;
}

function text(bytes: Buffer, at: number, value: string): void {
  bytes.fill(0, at, at + 32);
  bytes.write(value, at);
}

describe("a LUKS header", () => {
  it("is decoded", () => {
    const header = parseLuksHeader(headerBytes(), PLACE);
    expect(header).toMatchObject({
      hash: "sha256",
      keyIterations: 1000,
      payloadOffset: 2068480,
      cipher: { cipher: "aes-256", mode: "xts", ivGenerator: "plain64", keyBytes: 64 },
    });
    expect(header.slots.map(({ isActive }) => isActive)).toEqual([true, ...Array(7).fill(false)]);
    expect(header.slots[1]?.keyMaterialOffset).toBe(262144);
  });

  it.each<[string, (bytes: Buffer) => void, RegExp]>([
    ["no magic", (bytes) => bytes.fill(0, 0, 6), /magic is missing/],
    ["version 2", (bytes) => bytes.writeUInt16BE(2, 6), /version 2 is not 1/],
    ["an unknown hash", (bytes) => text(bytes, 72, "whirlpool"), /hash "whirlpool" is not known/],
    ["an unknown cipher", (bytes) => text(bytes, 8, "rot13"), /cipher "rot13" with 64 bytes/],
    [
      "a cipher that objects have",
      (bytes) => text(bytes, 8, "constructor"),
      /cipher "constructor"/,
    ],
    ["a cipher that all objects are", (bytes) => text(bytes, 8, "__proto__"), /cipher "__proto__"/],
    ["an unknown mode", (bytes) => text(bytes, 40, "lrw-plain64"), /"lrw-plain64" is not known/],
    ["a mode alone", (bytes) => text(bytes, 40, "ecb"), /"ecb" is not known/],
    ["essiv without a hash", (bytes) => text(bytes, 40, "cbc-essiv"), /needs a hash/],
    ["no key", (bytes) => bytes.writeUInt32BE(0, 108), /with 0 bytes of key/],
    ["a huge key", (bytes) => bytes.writeUInt32BE(0xffff_ffff, 108), /with 4294967295 bytes/],
    ["no iterations", (bytes) => bytes.writeUInt32BE(0, 164), /has 0 iterations/],
    ["a slot of neither kind", (bytes) => bytes.writeUInt32BE(7, FIRST_SLOT), /neither active/],
    [
      "a slot without iterations",
      (bytes) => bytes.writeUInt32BE(0, FIRST_SLOT + 4),
      /0 iterations/,
    ],
    ["few stripes", (bytes) => bytes.writeUInt32BE(1, FIRST_SLOT + 44), /1 stripes, not 4000/],
    [
      "key material over the header",
      (bytes) => bytes.writeUInt32BE(1, FIRST_SLOT + 40),
      /key material at 0x200, outside/,
    ],
    [
      "key material past the area",
      (bytes) => bytes.writeUInt32BE(0xffff_ffff, FIRST_SLOT + 40),
      /outside the header's area/,
    ],
    [
      "key material of two slots at one place",
      (bytes) => bytes.writeUInt32BE(START_SECTORS + 1, FIRST_SLOT + SLOT_SIZE + 40),
      /slots 0 and 1 overlaps/,
    ],
  ])("is refused with %s", (_, damage, reason) => {
    const bytes = headerBytes();
    damage(bytes);
    expect(() => parseLuksHeader(bytes, PLACE)).toThrow(
      expect.objectContaining({ name: "FormatError", message: expect.stringMatching(reason) }),
    );
  });

  it.each([
    ["a slot", FIRST_SLOT + 4],
    ["the check of the volume key", 164],
  ])("does not make us work for hours: 2^32 - 1 iterations of %s", (_, at) => {
    const bytes = headerBytes();
    bytes.writeUInt32BE(0xffff_ffff, at);
    const header = parseLuksHeader(bytes, PLACE);
    const storage = new MemoryStorage("disk", new Uint8Array(0));
    expect(() => findVolumeKey(storage, PLACE, header, Buffer.from("x"))).toThrow(
      /want 429496\d+ iterations of PBKDF2, our limit is 134217728/,
    );
  });

  it.each([
    ["xts-plain64", 32, /xts needs blocks of 16 bytes, cast5 has 8/],
    ["cbc-essiv:sha256", 16, /essiv needs a key of cast5, 16 bytes: sha256 has 32 bytes/],
  ])("is refused with CAST5 and %s", (mode, keyBytes, reason) => {
    const bytes = headerBytes();
    text(bytes, 8, "cast5");
    text(bytes, 40, mode);
    bytes.writeUInt32BE(keyBytes, 108);
    const { cipher } = parseLuksHeader(bytes, PLACE);
    expect(() => suiteOf(cipher, "disk")).toThrow(
      expect.objectContaining({ name: "FormatError", message: expect.stringMatching(reason) }),
    );
  });

  it("opens no slot of key material that is not there", () => {
    const header = parseLuksHeader(headerBytes(), PLACE);
    const storage = new MemoryStorage("disk", new Uint8Array(0));
    expect(findVolumeKey(storage, PLACE, header, Buffer.from("x"))).toBeUndefined();
  });
});
