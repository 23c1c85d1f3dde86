/** Numbers and names of errno: those of asm-generic/errno-base.h, and what stands for rare ones. */

import { describe, expect, it } from "vitest";
import {
  errnoCode,
  errnoName,
  errnoNumber,
  nodeErrorCode,
} from "../../../src/syscalls/errno-names.ts";

describe("errno names", () => {
  it.each([
    ["EPERM", 1],
    ["ENOENT", 2],
    ["EIO", 5],
    ["ENXIO", 6],
    ["EAGAIN", 11],
    ["EINVAL", 22],
    ["ENOSPC", 28],
    ["EROFS", 30],
    ["ENODATA", 61],
    ["ENOTSUP", 95],
  ] as const)("%s is %i", (name, number) => {
    expect(errnoNumber(name)).toBe(number);
  });

  it("names a number, also one that this system lacks", () => {
    expect(errnoName(28)).toBe("ENOSPC");
    expect(errnoName(12345)).toBe("errno 12345");
  });

  it("makes EIO of what no reply should carry", () => {
    expect(errnoCode(28)).toBe("ENOSPC");
    expect(errnoCode(14)).toBe("EIO");
    expect(errnoCode(0)).toBe("EIO");
    expect(nodeErrorCode(Object.assign(new Error("x"), { code: "EACCES" }))).toBe("EACCES");
    expect(nodeErrorCode(Object.assign(new Error("x"), { code: "ERR_INVALID_ARG" }))).toBe("EIO");
    expect(nodeErrorCode("not an error")).toBe("EIO");
  });
});
