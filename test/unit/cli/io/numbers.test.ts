/** Numbers as qemu-io reads them: what qemu-io 7.2 made of each text was seen. */

import { describe, expect, it } from "vitest";
import { IoFailure } from "../../../../src/cli/io/failure.ts";
import { parseInteger, parsePattern, parseSize } from "../../../../src/cli/io/numbers.ts";

const KIB = 1024;

/** What a call says instead of giving a number. */
function refusalOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof IoFailure) return error.output;
    throw error;
  }
  return expect.fail("it is accepted");
}

describe("parseSize", () => {
  it.each([
    ["0", 0],
    ["00", 0],
    ["010", 10],
    ["512", 512],
    ["+5", 5],
    ["\t5", 5],
    ["5b", 5],
    ["5B", 5],
    ["64k", 64 * KIB],
    ["64K", 64 * KIB],
    ["3M", 3 * KIB ** 2],
    ["3m", 3 * KIB ** 2],
    ["1g", KIB ** 3],
    ["1T", KIB ** 4],
    ["1p", KIB ** 5],
    ["1E", KIB ** 6],
    ["0x10", 16],
    ["0X1f", 31],
    ["0x1b", 27],
    ["0x10k", 16 * KIB],
    ["1.5k", 1536],
    ["1.k", KIB],
    ["1.", 1],
    ["1.0", 1],
    ["1.0005k", 1025],
    ["0.0005k", 1],
    ["0.0000001k", 0],
    ["1.999999k", 2048],
    ["9007199254740991", 2 ** 53 - 1],
    ["9223372036854775807", 2 ** 63],
    ["7E", 7 * KIB ** 6],
  ])("takes %j for %d", (text, value) => {
    expect(parseSize(text)).toBe(value);
  });

  it.each([
    ...["", "abc", "-5", "-0", ".5k", "1.5", "0.5b", "1e3", "1.5e1k", "1s", "5kB", "5KiB", "1_0"],
    ...["0x", "0x1.8k", "0xg", "inf", "nan", "-", '"0"', "5 ", "99999999999999999999999x"],
  ])("refuses %j, which is no size", (text) => {
    expect(refusalOf(() => parseSize(text))).toBe(
      `Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ${text}`,
    );
  });

  it.each(["9223372036854775808", "18446744073709551616", "99999999999999999999999", "8E", "16E"])(
    "refuses %s, which is too large",
    (text) => {
      expect(refusalOf(() => parseSize(text))).toBe(`Parsing error: argument too large -- ${text}`);
    },
  );
});

describe("parsePattern", () => {
  it.each([
    ["0", 0],
    ["255", 255],
    ["0x41", 0x41],
    ["041", 0o41],
    ["+5", 5],
  ])("takes %s for %d", (text, value) => {
    expect(parsePattern(text)).toBe(value);
  });

  it.each(["-5", "256", "0x", "08", "0x1g", "1k", "xyz", ""])("refuses %j", (text) => {
    expect(refusalOf(() => parsePattern(text))).toBe(`${text} is not a valid pattern byte`);
  });
});

describe("parseInteger", () => {
  it.each([
    ["-1", -1],
    ["010", 8],
    ["0x10", 16],
    ["100", 100],
    ["1.5", undefined],
    ["", undefined],
  ])("takes %j for %j", (text, value) => {
    expect(parseInteger(text)).toBe(value);
  });
});
