/** A scene as SVG: one path for each colour, which follows the reader's choice of light or dark. */

import { COLOURS, type Paint, type Theme } from "./palette.ts";
import type { Rectangle, Scene, Text } from "./scene.ts";

/** @param theme undefined: as the reader has it */
export function renderSvg(scene: Scene, theme: Theme | undefined): string {
  const { width, height, title, description, rectangles, texts } = scene;
  const paints = Object.keys(COLOURS).filter((name): name is Paint => name in COLOURS);
  const lines = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img">`,
    `<title>${escaped(title)}</title>`,
    `<desc>${escaped(description)}</desc>`,
    `<style>text{font:12px ui-monospace,"DejaVu Sans Mono",monospace;white-space:pre}.title{font-size:16px;font-weight:bold}.end{text-anchor:end}${styles(paints, theme)}</style>`,
    `<rect class="paper" width="${width}" height="${height}"/>`,
    ...paints.flatMap((paint) => pathOf(paint, rectangles)),
    ...texts.map(textOf),
    "</svg>",
  ];
  return `${lines.join("\n")}\n`;
}

function styles(paints: readonly Paint[], theme: Theme | undefined): string {
  const rules = (chosen: Theme): string =>
    paints.map((paint) => `.${paint}{fill:${colourText(COLOURS[paint][chosen])}}`).join("");
  if (theme !== undefined) return rules(theme);
  return `${rules("light")}@media(prefers-color-scheme:dark){${rules("dark")}}`;
}

function colourText(colour: number): string {
  return `#${colour.toString(16).padStart(6, "0")}`;
}

function pathOf(paint: Paint, rectangles: readonly Rectangle[]): string[] {
  const steps = rectangles
    .filter((rectangle) => rectangle.paint === paint)
    .map(({ x, y, width, height }) => `M${x} ${y}h${width}v${height}h-${width}z`);
  return steps.length === 0 ? [] : [`<path class="${paint}" d="${steps.join("")}"/>`];
}

function textOf({ x, y, text, size, paint, anchor }: Text): string {
  const classes = [
    paint,
    ...(size === "title" ? [size] : []),
    ...(anchor === "end" ? [anchor] : []),
  ];
  return `<text x="${x}" y="${y}" class="${classes.join(" ")}">${escaped(text)}</text>`;
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
};

/** Half of a surrogate pair, and two others, are no characters of XML. */
const NO_CHARACTER = /\p{Surrogate}|[\ufffe\uffff]/gu;

function escaped(text: string): string {
  return text
    .replace(NO_CHARACTER, "\ufffd")
    .replace(/[&<>"]/g, (character) => ENTITIES[character] ?? character);
}
