/** Pictures on terminals of several widths: letters, and half-blocks. */

import { describe, expect, it } from "vitest";
import { PictureCells } from "../../../../src/block/picture-cells.ts";
import {
  renderTerminal,
  type TerminalForm,
  terminalCells,
} from "../../../../src/cli/picture/terminal.ts";
import { CLUSTER, sampleMap } from "./sample-map.ts";

function render(form: TerminalForm, path?: string): string[] {
  return renderTerminal(sampleMap(terminalCells(form), path), form).split("\n");
}

/** The letters of the map whose heading starts with `heading`. */
function lettersOf(lines: readonly string[], heading: string, label: number): string {
  const start = lines.findIndex((line) => line.startsWith(heading)) + 1;
  const rows = lines.slice(start, lines.indexOf("", start));
  return rows.map((row) => row.slice(label)).join("");
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: colours are set with them
const COLOURS = /\u001b\[[\d;]*m/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: as above
const HALF_BLOCKS = /\u001b\[38;5;(\d+);(?:48;5;(\d+)|49)m(\u2580+)/g;

describe("a picture on a terminal", () => {
  it("has a letter for each cell without colours", () => {
    const lines = render({ width: 80, colours: undefined });
    const disk = `DDDdddDDD${"D".repeat(61)}CCc${"C".repeat(7)}${"Z".repeat(20)}${"B".repeat(50)}`;
    expect(lettersOf(lines, "Virtual disk", 9)).toBe(disk + ".".repeat(150));
    const file = `MMMM${"D".repeat(70)}CC${"S".repeat(10)}L${"H".repeat(13)}`;
    expect(lettersOf(lines, "Image file", 9)).toBe(file);
    expect(lines).toContain("D data        4.38 MiB / 4.38 MiB");
    expect(lines.join()).not.toMatch(COLOURS);
  });

  it.each([1, 5, 29, 30, 31, 40, 80, 133, 400])("is no wider than %i characters", (width) => {
    for (const colours of [undefined, 256] as const) {
      const lines = render({ width, colours }, `/x/${"long".repeat(200)}.qcow2`);
      const widths = lines.map((line) => [...line.replace(COLOURS, "")].length);
      expect(Math.max(...widths)).toBeLessThanOrEqual(Math.max(width, 2));
    }
  });

  it.each([20, 80, 200])("shows two cells in each half-block, %i characters wide", (width) => {
    const form: TerminalForm = { width, colours: 256 };
    const map = sampleMap(terminalCells(form));
    const lines = renderTerminal(map, form).split("\n");
    const text = lettersOf(lines, "Virtual disk", width < 30 ? 0 : 9);
    const cells = [...text.matchAll(HALF_BLOCKS)];
    const upper = cells.reduce((sum, [, , , blocks]) => sum + (blocks?.length ?? 0), 0);
    const lower = cells.reduce((sum, [, , ground, blocks]) => {
      return sum + (ground === undefined ? 0 : (blocks?.length ?? 0));
    }, 0);
    expect(upper + lower).toBe(map.disk.count);
    expect(text.endsWith("\u001b[0m")).toBe(true);
  });

  it("lets a little that is stored be seen in much that is not", () => {
    const form: TerminalForm = { width: 80, colours: undefined };
    const disk = new PictureCells(24 * CLUSTER, CLUSTER, 3);
    disk.add("unallocated", 0, 24 * CLUSTER);
    disk.add("data", 8 * CLUSTER, CLUSTER);
    disk.add("data", 16 * CLUSTER, CLUSTER - 1);
    const lines = renderTerminal({ ...sampleMap(), disk }, form).split("\n");
    expect(lettersOf(lines, "Virtual disk", 9)).toBe(".D.");
  });

  it("cannot be led to other lines by the name of a file", () => {
    const [title] = render({ width: 80, colours: 256 }, "/x/a\u001b[2J\nb.qcow2");
    expect(title).toBe("a\\x1b[2J\\x0ab.qcow2");
  });
});
