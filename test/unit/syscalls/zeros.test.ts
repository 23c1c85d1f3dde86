/** Looking for bytes that are not zero, against a loop over all of them. */

import { describe, expect, it } from "vitest";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { isZero, ZEROS, ZEROS_SIZE } from "../../../src/syscalls/zeros.ts";
import { Random } from "../../support/random.ts";

describe("ZEROS", () => {
  it("are as many as they say", () => {
    expect(ZEROS.length).toBe(ZEROS_SIZE);
    expect(ZEROS.bytes.every((byte) => byte === 0)).toBe(true);
  });
});

describe("isZero", () => {
  const SIZE = 3 * ZEROS_SIZE + 100;

  it.each([
    { start: 0, length: 0 },
    { start: 0, length: 1 },
    { start: 7, length: 2 },
    { start: 1, length: 511 },
    { start: 0, length: ZEROS_SIZE },
    { start: 3, length: ZEROS_SIZE + 1 },
    { start: 5, length: 2 * ZEROS_SIZE },
    { start: 9, length: 3 * ZEROS_SIZE - 1 },
  ])("finds each byte of $length from $start on, and none outside", ({ start, length }) => {
    const buffer = NativeBuffer.allocate(SIZE);
    buffer.bytes.fill(0xff);
    buffer.bytes.fill(0, start, start + length);
    expect(isZero(buffer, start, length)).toBe(true);
    const places = [
      ...[0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64],
      ...[ZEROS_SIZE - 1, ZEROS_SIZE, ZEROS_SIZE + 1, 2 * ZEROS_SIZE - 1, 2 * ZEROS_SIZE],
      ...[Math.floor(length / 2), length - 2, length - 1],
    ];
    for (const place of places.filter((at) => at >= 0 && at < length)) {
      for (const value of [1, 0x80, 0xff]) {
        buffer.bytes[start + place] = value;
        expect(isZero(buffer, start, length), `byte ${place}`).toBe(false);
      }
      buffer.bytes[start + place] = 0;
    }
    expect(isZero(buffer, start, length)).toBe(true);
  });

  it("says what a loop says", () => {
    const random = new Random("is zero");
    const buffer = NativeBuffer.allocate(SIZE);
    for (let round = 0; round < 500; round++) {
      buffer.bytes.fill(0);
      for (let index = random.below(3); index > 0; index--) {
        buffer.bytes[random.below(SIZE)] = random.between(1, 255);
      }
      const start = random.below(SIZE);
      const length = random.below(SIZE - start + 1);
      const slow = buffer.bytes.subarray(start, start + length).every((byte) => byte === 0);
      expect(isZero(buffer, start, length), `${length} from ${start}`).toBe(slow);
    }
  });

  it("looks at shared memory too", () => {
    const buffer = new NativeBuffer(new SharedArrayBuffer(1000));
    expect(isZero(buffer, 10, 990)).toBe(true);
    buffer.bytes[500] = 1;
    expect(isZero(buffer, 10, 990)).toBe(false);
  });
});
