/** Compares long runs of bytes fast, and says where they differ instead of printing them. */

import { expect } from "vitest";

export function expectBytes(actual: Uint8Array, expected: Uint8Array, what = "bytes"): void {
  if (Buffer.compare(actual, expected) === 0) return;
  expect(actual.length, `length of ${what}`).toBe(expected.length);
  const difference = actual.findIndex((byte, index) => byte !== expected[index]);
  expect.fail(
    `${what}: byte ${difference} is ${actual[difference]}, expected ${expected[difference]}`,
  );
}
