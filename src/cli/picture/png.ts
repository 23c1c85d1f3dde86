/**
 * A scene as PNG, with two pixels for each unit and a palette of the scene's colours.
 * Source: "Portable Network Graphics (PNG) Specification", third edition.
 */

import { deflateSync } from "node:zlib";
import { GLYPH_HEIGHT, GLYPH_WIDTH, glyphRows } from "./font.ts";
import { COLOURS, type Paint, type Theme } from "./palette.ts";
import type { Scene, Text } from "./scene.ts";

/** Pixels of a unit. */
const SCALE = 2;
/** Pixels of a dot of the font, by size. */
const DOTS = { normal: 2, title: 3 } as const;

const SIGNATURE = Buffer.from("\x89PNG\r\n\x1a\n", "latin1");
const COLOUR_TYPE_INDEXED = 3;

const PAINTS = Object.keys(COLOURS).filter((name): name is Paint => name in COLOURS);

export function renderPng(scene: Scene, theme: Theme): Buffer {
  const canvas = new Canvas(scene.width * SCALE, scene.height * SCALE);
  for (const { x, y, width, height, paint } of scene.rectangles) {
    canvas.fill(x * SCALE, y * SCALE, width * SCALE, height * SCALE, paint);
  }
  for (const text of scene.texts) drawText(canvas, text);
  const palette = PAINTS.map((paint) => COLOURS[paint][theme]);
  return Buffer.concat([
    SIGNATURE,
    chunk("IHDR", headerOf(canvas)),
    chunk("PLTE", Buffer.from(palette.flatMap((c) => [c >> 16, (c >> 8) & 0xff, c & 0xff]))),
    chunk("tEXt", Buffer.from(`Title\0${asciiOf(scene.title)}`, "latin1")),
    chunk("IDAT", deflateSync(canvas.scanLines, { level: 9 })),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

/** Pixels as indexes of the palette; before each line the byte that names its filter, none. */
class Canvas {
  readonly width: number;
  readonly height: number;
  readonly scanLines: Buffer;

  constructor(width: number, height: number) {
    this.width = width;
    this.height = height;
    this.scanLines = Buffer.alloc((width + 1) * height, PAINTS.indexOf("paper"));
    for (let y = 0; y < height; y++) this.scanLines[y * (width + 1)] = 0;
  }

  /** What is outside of the canvas is cut off. */
  fill(x: number, y: number, width: number, height: number, paint: Paint): void {
    const index = PAINTS.indexOf(paint);
    const [left, right] = [Math.max(0, x), Math.min(this.width, x + width)];
    if (right <= left) return;
    for (let line = Math.max(0, y); line < Math.min(this.height, y + height); line++) {
      const start = line * (this.width + 1) + 1;
      this.scanLines.fill(index, start + left, start + right);
    }
  }
}

function headerOf({ width, height }: Canvas): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header[8] = 8; // bits of a pixel
  header[9] = COLOUR_TYPE_INDEXED;
  return header;
}

function drawText(canvas: Canvas, { x, y, text, size, paint, anchor }: Text): void {
  const dot = DOTS[size];
  const advance = (GLYPH_WIDTH + 1) * dot;
  const letters = asciiOf(text);
  const width = letters.length * advance - dot;
  let left = x * SCALE - (anchor === "end" ? width : 0);
  const top = y * SCALE - (GLYPH_HEIGHT - 1) * dot;
  for (const letter of letters) {
    for (const [row, dots] of glyphRows(letter).entries()) {
      for (let column = 0; column < GLYPH_WIDTH; column++) {
        if ((dots & (1 << column)) === 0) continue;
        canvas.fill(left + column * dot, top + row * dot, dot, dot, paint);
      }
    }
    left += advance;
  }
}

/** The font has no other letters. */
function asciiOf(text: string): string {
  return text.replace(/[^ -~]/gu, "?");
}

function chunk(type: string, data: Buffer): Buffer {
  const named = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  const sum = Buffer.alloc(4);
  sum.writeUInt32BE(crc32(named));
  return Buffer.concat([length, named, sum]);
}

/** CRC-32 of the polynomial 0x04c11db7, bits reversed: annex D. Node 20 does not always have one. */
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? (crc >>> 1) ^ 0xedb8_8320 : crc >>> 1;
  return crc;
});

function crc32(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (CRC_TABLE[(crc ^ byte) & 0xff] ?? 0);
  return (crc ^ 0xffff_ffff) >>> 0;
}
