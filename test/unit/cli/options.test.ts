/** The values of options: words, sizes and numbers. */

import { describe, expect, it } from "vitest";
import { numberOption, oneOf, sizeOption } from "../../../src/cli/options.ts";

const refusal = (message: string) => expect.objectContaining({ name: "UsageError", message });

describe("oneOf", () => {
  const parse = oneOf("--output", ["human", "json"]);

  it("takes the words there are, as they are written", () => {
    expect(parse("human")).toBe("human");
    expect(parse("json")).toBe("json");
  });

  it.each(["", "JSON", "jso", "json ", "toString"])("refuses %j", (text) => {
    expect(() => parse(text)).toThrow(refusal(`--output: ${text} is not one of human, json`));
  });
});

describe("sizeOption", () => {
  const parse = sizeOption("--size");

  it.each([
    ["0", 0],
    ["512", 512],
    ["7b", 7],
    ["1k", 1024],
    ["1K", 1024],
    ["64M", 64 * 1024 ** 2],
    ["10G", 10 * 1024 ** 3],
    ["8T", 8 * 1024 ** 4],
    ["7P", 7 * 1024 ** 5],
    ["9007199254740991", Number.MAX_SAFE_INTEGER],
    // As qemu-img.
    ["+1", 1],
    ["1.5G", 1.5 * 1024 ** 3],
    ["0x10", 16],
  ])("takes %s for %i", (text, bytes) => {
    expect(parse(text)).toBe(bytes);
  });

  it.each(["", "k", "-1", "1.5", "1 k", "1kk", "1KiB", "1e3", "١"])("refuses %j", (text) => {
    expect(() => parse(text)).toThrow(
      refusal(`--size: ${text} is not a size, such as 512, 64k or 10G`),
    );
  });

  it.each(["9007199254740992", "8P", "18446744073709551617", "0x20000000000000"])(
    "says that %s is too large, as it was written",
    (text) => {
      expect(() => parse(text)).toThrow(
        refusal(`--size: ${text} is above the limit of 2^53 - 512 bytes`),
      );
    },
  );
});

describe("numberOption", () => {
  const parse = numberOption("--threads", 1, 64);

  it.each([
    ["1", 1],
    ["64", 64],
    ["007", 7],
  ])("takes %s for %i", (text, value) => {
    expect(parse(text)).toBe(value);
  });

  it.each(["0", "65", "-1", "", "four", "4.0", "1e1", "0x4", " 4", "99999999999999999999"])(
    "refuses %j",
    (text) => {
      expect(() => parse(text)).toThrow(refusal(`--threads: ${text} is not a number in 1..64`));
    },
  );
});
