/** Options of commands, taken apart as getopt(3) of the GNU library does it. */

import { describe, expect, it } from "vitest";
import { type IoCommand, parseOptions } from "../../../../src/cli/io/command.ts";
import { IoFailure } from "../../../../src/cli/io/failure.ts";

const COMMAND: IoCommand = {
  name: "read",
  words: [0, 9],
  usage: "[-v]",
  summary: "reads",
  run: () => undefined,
};

function parsed(line: string, name = "read"): string {
  const taken: string[] = [];
  const words = line.split(" ").filter((word) => word !== "");
  const rest = parseOptions(COMMAND, { name, words }, "bCl:P:v", (letter, value) => {
    taken.push(letter + value);
  });
  return `${taken.join(" ")} | ${rest.join(" ")}`;
}

function failureOf(line: string, name = "read"): IoFailure {
  try {
    parsed(line, name);
  } catch (error) {
    if (error instanceof IoFailure) return error;
    throw error;
  }
  return expect.fail("it is accepted");
}

describe("options", () => {
  it.each([
    ["0 512", " | 0 512"],
    ["-v 0 512", "v | 0 512"],
    ["0 -v 512 -C", "v C | 0 512"],
    ["-vC 0", "v C | 0"],
    ["-P 1 0", "P1 | 0"],
    ["-P1 0", "P1 | 0"],
    ["-vP0x41 0", "v P0x41 | 0"],
    ["-vP 0x41 0", "v P0x41 | 0"],
    ["-P -v 0", "P-v | 0"],
    ["-v -- -1 -C", "v | -1 -C"],
    ["0 -- -v", " | 0 -v"],
    ["- 1", " | - 1"],
    ["-v -v", "v v | "],
    ["", " | "],
  ])("of %j are %j", (line, expected) => {
    expect(parsed(line)).toBe(expected);
  });

  it.each([
    ["-x 0", "x"],
    ["-vx 0", "x"],
    ["--verbose 0", "-"],
    ["-: 0", ":"],
  ])("refuses %j and tells the usage", (line, letter) => {
    const failure = failureOf(line, "r");
    expect(failure.errors).toBe(`r: invalid option -- '${letter}'`);
    expect(failure.output).toBe("read [-v] -- reads");
  });

  it.each(["0 -P", "-vP"])("refuses %j, which lacks a value", (line) => {
    expect(failureOf(line).errors).toBe("read: option requires an argument -- 'P'");
  });
});
