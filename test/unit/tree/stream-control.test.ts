import { describe, expect, it } from "vitest";
import { parseStreamCommand } from "../../../src/tree/stream-control.ts";

describe("commands to a device's streaming", () => {
  it.each([
    ["start", { word: "start", limit: undefined }],
    ["start=1", { word: "start", limit: 1 }],
    ["start=512k", { word: "start", limit: 512 * 1024 }],
    ["start=20M", { word: "start", limit: 20 * 1024 ** 2 }],
    ["start=3G", { word: "start", limit: 3 * 1024 ** 3 }],
    ["start=1t", { word: "start", limit: 1024 ** 4 }],
    ["pause", { word: "pause" }],
    ["cancel", { word: "cancel" }],
  ])("%s is understood", (text, command) => {
    expect(parseStreamCommand(text)).toEqual(command);
  });

  it.each([
    ...["", "stop", "start ", "start=", "start=0", "start=-1", "start=1x", "start=1.5M", "start\n"],
    ...["pause=1", "start=99999999999999999999", "idle", "running 5/10", "done 10/10"],
  ])("%j is not", (text) => {
    expect(parseStreamCommand(text)).toBeUndefined();
  });
});
