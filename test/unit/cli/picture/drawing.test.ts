/** Pictures in SVG and PNG: the areas of their colours against the cells, and their form. */

import { inflateSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { CELL_CLASSES, type CellClass, PictureCells } from "../../../../src/block/picture-cells.ts";
import { CELL, layOut, sharesOf } from "../../../../src/cli/picture/layout.ts";
import { COLOURS, type Theme } from "../../../../src/cli/picture/palette.ts";
import { renderPng } from "../../../../src/cli/picture/png.ts";
import { renderSvg } from "../../../../src/cli/picture/svg.ts";
import { Random } from "../../../support/random.ts";
import { sampleMap } from "./sample-map.ts";

/** Cells of each class in the sample, counted by hand; a cell of two halves is half a cell of each. */
const DISK: Partial<Record<CellClass, number>> = {
  data: 70,
  compressed: 10,
  zero: 20,
  backing: 50 + 1 / 8,
  unallocated: 150 - 1 / 8,
};
const FILE: Partial<Record<CellClass, number>> = {
  metadata: 4,
  data: 70,
  compressed: 2,
  snapshot: 10,
  leaked: 1,
  free: 0.5,
  hole: 12.5,
};

/** The area of a class: its cells, and one more in the legend. */
function areaOf(cellClass: CellClass): number {
  const cells = (DISK[cellClass] ?? 0) + (FILE[cellClass] ?? 0);
  return cells === 0 ? 0 : (cells + 1) * CELL * CELL;
}

/** One element with its contents, as the grammar of XML 1.0 has them: no prolog, comments or sections. */
const XML_TOKEN =
  /<([a-z]+)((?: [A-Za-z-]+="(?:[^"<&]|&(?:amp|lt|gt|quot);)*")*)(\/?)>|<\/([a-z]+)>|(?:[^<>&]|&(?:amp|lt|gt|quot);)+/guy;

/** Expects well-formed XML: each token, elements that end in the order of their starts, each attribute once. */
function expectXml(text: string): void {
  const open: string[] = [];
  let end = 0;
  for (const [token, start, attributes, empty, close] of text.matchAll(XML_TOKEN)) {
    end += token.length;
    if (start !== undefined) {
      const names = [...(attributes ?? "").matchAll(/ ([A-Za-z-]+)="/g)].map(([, name]) => name);
      expect(new Set(names).size).toBe(names.length);
      if (empty !== "/") open.push(start);
    } else if (close !== undefined) expect(open.pop()).toBe(close);
    else expect(open.length > 0 || token.trim() === "").toBe(true);
  }
  expect(text.slice(end, end + 40)).toBe("");
  expect(open).toEqual([]);
}

describe("sharesOf", () => {
  it("fills the cell, and lets nothing vanish", () => {
    const random = new Random("shares");
    for (let round = 0; round < 300; round++) {
      const cells = new PictureCells(2 ** 30, 2 ** 30, 1);
      let at = 0;
      const present = CELL_CLASSES.filter(() => random.below(3) === 0).slice(0, CELL);
      for (const cellClass of present) {
        const length = random.between(1, 10 ** random.between(1, 7));
        cells.add(cellClass, at, length);
        at += length;
      }
      if (present.length === 0) continue;
      const shares = sharesOf(cells, 0);
      expect(shares.map(({ cellClass }) => cellClass)).toEqual(present);
      expect(shares.reduce((sum, { units }) => sum + units, 0)).toBe(CELL);
      expect(Math.min(...shares.map(({ units }) => units))).toBeGreaterThanOrEqual(1);
    }
  });
});

describe("SVG", () => {
  const svg = renderSvg(layOut(sampleMap()), undefined);

  it("has an area for each class that is that of its cells", () => {
    for (const cellClass of CELL_CLASSES) {
      const path = new RegExp(`<path class="${cellClass}" d="([^"]*)"/>`).exec(svg)?.[1] ?? "";
      const steps = [...path.matchAll(/M\d+ \d+h(\d+)v(\d+)h-\1z/g)];
      expect(steps.map(([step]) => step).join("")).toBe(path);
      const area = steps.reduce(
        (sum, [, width, height]) => sum + Number(width) * Number(height),
        0,
      );
      expect(area, cellClass).toBe(areaOf(cellClass));
    }
  });

  it("follows the reader's choice of light or dark, unless it is stated", () => {
    expect(svg).toContain("@media(prefers-color-scheme:dark)");
    const dark = renderSvg(layOut(sampleMap()), "dark");
    expect(dark).not.toContain("@media");
    expect(dark).toContain(".paper{fill:#161616}");
  });

  it("is well-formed whatever the file is called", () => {
    const name = `a<b>&"c'\u0001\ud800\uffff\u{1f600}.qcow2`;
    const text = renderSvg(layOut(sampleMap(9, `/x/${name}`)), undefined);
    const title = "a&lt;b&gt;&amp;&quot;c'\\x01\ufffd\ufffd\u{1f600}.qcow2";
    expect(text).toContain(`<title>${title}</title>`);
    expect(text).toContain(`class="ink title">${title}</text>`);
    expectXml(text);
    expect(() => expectXml(text.replace("</title>", "</desc>"))).toThrow();
    expect(() => expectXml(text.replace('" height', " height"))).toThrow();
    expect(() => expectXml(text.replace("&lt;", "&"))).toThrow();
  });

  it("says the sums, and how often the order breaks", () => {
    expect(svg).toContain("one cell is 64 KiB");
    expect(svg).toContain(">4.38 MiB</text>");
    expect(svg).toContain("the order in the file breaks 4 times");
  });
});

interface Pixels {
  readonly width: number;
  readonly height: number;
  /** 0xrrggbb each. */
  readonly colours: number[];
}

/** A reader of its own for what the writer makes: one IDAT, indexed, no filters. */
function readPng(png: Buffer): Pixels {
  expect(png.subarray(0, 8).toString("latin1")).toBe("\x89PNG\r\n\x1a\n");
  const chunks = new Map<string, Buffer>();
  for (let at = 8; at < png.length; ) {
    const length = png.readUInt32BE(at);
    chunks.set(png.toString("latin1", at + 4, at + 8), png.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  expect([...chunks.keys()]).toEqual(["IHDR", "PLTE", "tEXt", "IDAT", "IEND"]);
  const header = chunks.get("IHDR") ?? Buffer.alloc(0);
  const palette = chunks.get("PLTE") ?? Buffer.alloc(0);
  expect([...header.subarray(8)]).toEqual([8, 3, 0, 0, 0]);
  const [width, height] = [header.readUInt32BE(0), header.readUInt32BE(4)];
  const lines = inflateSync(chunks.get("IDAT") ?? Buffer.alloc(0));
  expect(lines.length).toBe((width + 1) * height);
  const colours: number[] = [];
  for (let y = 0; y < height; y++) {
    const start = y * (width + 1);
    expect(lines[start]).toBe(0);
    for (const index of lines.subarray(start + 1, start + 1 + width)) {
      colours.push(palette.readUIntBE(index * 3, 3));
    }
  }
  return { width, height, colours };
}

describe("PNG", () => {
  it.each<Theme>(["light", "dark"])("has as many pixels of each colour, %s", (theme) => {
    const scene = layOut(sampleMap());
    const { width, height, colours } = readPng(renderPng(scene, theme));
    expect([width, height]).toEqual([scene.width * 2, scene.height * 2]);
    for (const cellClass of CELL_CLASSES) {
      const colour = COLOURS[cellClass][theme];
      const pixels = colours.filter((other) => other === colour).length;
      expect(pixels, cellClass).toBe(areaOf(cellClass) * 4);
    }
  });

  it("has right check sums, as IEND's is known", () => {
    const png = renderPng(layOut(sampleMap(1)), "light");
    expect(png.subarray(-12).toString("hex")).toBe("0000000049454e44ae426082");
  });

  it("draws titles that are too long, or of other letters", () => {
    const title = `/x/${"\u{1f600}\u00e4w".repeat(200)}.qcow2`;
    const scene = layOut(sampleMap(1, title));
    expect(readPng(renderPng(scene, "light")).width).toBe(scene.width * 2);
  });
});
