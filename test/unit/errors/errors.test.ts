/** What expected failures say, and that nothing in an image can take over the terminal. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  CorruptionError,
  FormatError,
  hex,
  printable,
  StorageError,
  TsimgfsError,
  UnsupportedError,
  UsageError,
} from "../../../src/errors.ts";

describe("printable", () => {
  it("leaves ordinary text of any script alone", () => {
    const text = "disk-1.qcow2 äöü 磁盘 диск 🖴 \\x1b 100%";
    expect(printable(text)).toBe(text);
  });

  it.each([
    ["\n", "\\x0a"],
    ["\r", "\\x0d"],
    ["\t", "\\x09"],
    ["\0", "\\x00"],
    ["\x1b[2J", "\\x1b[2J"],
    ["\x7f", "\\x7f"],
    ["\x80", "\\x80"],
    ["\x9b31m", "\\x9b31m"],
    ["\x9f", "\\x9f"],
    ["\u2028", "\\u2028"],
    ["\u2029", "\\u2029"],
  ])("escapes control character %j", (text, expected) => {
    expect(printable(text)).toBe(expected);
  });

  it.each([
    "\u202a",
    "\u202b",
    "\u202c",
    "\u202d",
    "\u202e",
    "\u2066",
    "\u2067",
    "\u2068",
    "\u2069",
  ])("escapes %j, which reorders the text around it", (mark) => {
    const code = mark.charCodeAt(0).toString(16);
    expect(printable(`gpj${mark}.raw`)).toBe(`gpj\\u${code}.raw`);
  });

  it("does not escape the neighbours of what it escapes", () => {
    expect(printable(" ~\u00a0\u2027\u202f\u2065\u206a")).toBe(" ~\u00a0\u2027\u202f\u2065\u206a");
  });

  it("gives one line without control characters for any text, and is done after one pass", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        const shown = printable(text);
        expect(/\p{Cc}|\p{Zl}|\p{Zp}/u.test(shown)).toBe(false);
        expect(printable(shown)).toBe(shown);
      }),
    );
  });
});

describe("expected failures", () => {
  it.each([
    [new FormatError("a.qcow2", "is bad"), "FormatError", "EINVAL"],
    [new UnsupportedError("a.qcow2", "is bad"), "UnsupportedError", "ENOTSUP"],
    [new CorruptionError("a.qcow2", "is bad"), "CorruptionError", "EIO"],
    [new StorageError("ENOSPC", "a.qcow2", "is bad"), "StorageError", "ENOSPC"],
    [new UsageError("a.qcow2", "is bad"), "UsageError", "EINVAL"],
  ])("say FILE: reason and carry an errno: %s", (error, name, code) => {
    expect(error).toBeInstanceOf(TsimgfsError);
    expect(error).toMatchObject({ name, code, path: "a.qcow2", message: "a.qcow2: is bad" });
  });

  it("keep the offset and the cause, and the path as it is", () => {
    const cause = new Error("below");
    const error = new FormatError("a\nb", "x\x1by", { offset: 0x30, cause });
    expect(error.message).toBe("a\\x0ab: x\\x1by");
    expect(error.path).toBe("a\nb");
    expect(error.offset).toBe(0x30);
    expect(error.cause).toBe(cause);
  });

  it("have no offset unless one is stated", () => {
    expect(new CorruptionError("a", "b").offset).toBeUndefined();
  });
});

describe("hex", () => {
  it("writes numbers and bigints with a prefix", () => {
    expect(hex(0)).toBe("0x0");
    expect(hex(0x1f00)).toBe("0x1f00");
    expect(hex(2n ** 63n)).toBe("0x8000000000000000");
  });
});
