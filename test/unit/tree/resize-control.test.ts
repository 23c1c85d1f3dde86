/** What the attributes of a device's size can be set to. */

import { describe, expect, it } from "vitest";
import { parseSizeChange } from "../../../src/block/resize-request.ts";
import { parseResizeCommand } from "../../../src/tree/resize-control.ts";

describe("a size, or a change of one", () => {
  it.each([
    ["512", "", 512],
    ["+64k", "+", 65536],
    ["-1.5M", "-", 1.5 * 2 ** 20],
    ["0x200", "", 512],
    ["0", "", 0],
  ] as const)("%s", (text, sign, bytes) => {
    expect(parseSizeChange(text)).toEqual({ sign, bytes: BigInt(bytes) });
  });

  it.each(["", "+", "-", "+-5", "--5", "- 5", " 5", "five", "5x", "1.5"])("not %j", (text) => {
    expect(parseSizeChange(text)).toBeUndefined();
  });
});

describe("the command to resize a device", () => {
  it("has a size, and maybe what the host is to set aside", () => {
    const change = { sign: "+", bytes: 2n ** 30n };
    const plain = { change, mayShrink: false, preallocation: "off" };
    expect(parseResizeCommand("+1G", false)).toEqual(plain);
    const full = { change, mayShrink: true, preallocation: "full" };
    expect(parseResizeCommand("+1G,preallocation=full", true)).toEqual(full);
  });

  it.each([
    "",
    "1G,",
    "1G,preallocation=",
    "1G,preallocation=some",
    "1G,size=2",
    ",preallocation=off",
  ])("is not %j", (text) => expect(parseResizeCommand(text, true)).toBeUndefined());
});
