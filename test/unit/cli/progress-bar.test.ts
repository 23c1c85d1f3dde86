import { describe, expect, it } from "vitest";
import { progressLine } from "../../../src/cli/progress-bar.ts";

const GIB = 2 ** 30;

describe("the line of progress", () => {
  it.each([
    [{ done: 0, total: 3 * GIB, rate: 0 }, "[>                             ]   0% of 3 GiB"],
    [
      { done: 1.5 * GIB, total: 3 * GIB, rate: 0.1 * GIB },
      "[===============>              ]  50% of 3 GiB, 102 MiB/s, 0:15 left",
    ],
    [
      { done: 0, total: GIB, rate: 100_000 },
      "[>                             ]   0% of 1 GiB, 97.7 KiB/s, 2:58:58 left",
    ],
    [
      { done: GIB, total: GIB, rate: GIB },
      "[==============================] 100% of 1 GiB, 1 GiB/s, 0:00 left",
    ],
    [{ done: 0, total: 0, rate: 0 }, "[==============================] 100% of 0 B"],
  ])("of %o", (progress, line) => {
    expect(progressLine(progress)).toBe(line);
  });
});
