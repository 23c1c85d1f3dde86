/** Entries of refcount blocks of all widths, against one big number with the bits of the whole block. */

import { describe, expect, it } from "vitest";
import { readRefcount, writeRefcount } from "../../../../src/formats/qcow2/refcount-entry.ts";
import { Random } from "../../../support/random.ts";

const WIDTHS = [1, 2, 4, 8, 16, 32, 64] as const;
const SIZE = 512;
/** Refcounts of 64 bits are Numbers here. */
const SAFE_BITS = 53;

/**
 * The value of entry `index`, by the text of the specification: entries below a byte count from its
 * lowest bit on, larger ones are big-endian.
 */
function modelRead(bytes: Uint8Array, index: number, bits: number): bigint {
  if (bits < 8) {
    const all = BigInt(`0x${Buffer.from(bytes).reverse().toString("hex")}`);
    return (all >> BigInt(index * bits)) & ((1n << BigInt(bits)) - 1n);
  }
  const width = bits / 8;
  return BigInt(
    `0x${Buffer.from(bytes.subarray(index * width, (index + 1) * width)).toString("hex")}`,
  );
}

function modelWrite(bytes: Uint8Array, index: number, bits: number, value: bigint): void {
  if (bits < 8) {
    const shift = BigInt(index * bits);
    let all = BigInt(`0x${Buffer.from(bytes).reverse().toString("hex")}`);
    all &= ~(((1n << BigInt(bits)) - 1n) << shift);
    all |= value << shift;
    const hex = all.toString(16).padStart(bytes.length * 2, "0");
    bytes.set(Buffer.from(hex, "hex").reverse());
    return;
  }
  const hex = value.toString(16).padStart(bits / 4, "0");
  bytes.set(Buffer.from(hex, "hex"), (index * bits) / 8);
}

const viewOf = (bytes: Uint8Array): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

describe.each(WIDTHS)("refcounts of %i bits", (bits) => {
  const entries = (SIZE * 8) / bits;
  const max = 2n ** BigInt(Math.min(bits, SAFE_BITS)) - 1n;

  it("are read as the specification says, the first and the last too", () => {
    const random = new Random(`refcounts ${bits}`);
    const bytes = random.bytes(SIZE);
    // Above 2^53 - 1 they are rounded.
    if (bits === 64) {
      for (let at = 0; at < SIZE; at += 8) bytes.writeUInt16BE(random.below(32), at);
    }
    for (let index = 0; index < entries; index++) {
      expect(readRefcount(viewOf(bytes), index, bits)).toBe(Number(modelRead(bytes, index, bits)));
    }
  });

  it("are written so, and nothing else is", () => {
    const random = new Random(`refcounts ${bits}`);
    const bytes = random.bytes(SIZE);
    const model = Buffer.from(bytes);
    for (let round = 0; round < 1000; round++) {
      const index = random.pick([0, 1, entries - 1, random.below(entries)]);
      const value = random.pick([0n, 1n, max, max - 1n, BigInt(random.below(Number(max)))]);
      writeRefcount(viewOf(bytes), index, bits, Number(value));
      modelWrite(model, index, bits, value);
      expect(bytes.equals(model)).toBe(true);
      expect(readRefcount(viewOf(bytes), index, bits)).toBe(Number(value));
    }
  });
});

describe("refcounts of 64 bits above 2^53 - 1", () => {
  it("are read as more than any that can be used", () => {
    const bytes = Buffer.alloc(8, 0xff);
    expect(readRefcount(viewOf(bytes), 0, 64)).toBeGreaterThan(Number.MAX_SAFE_INTEGER);
  });
});
