/** A picture before it is SVG or PNG: rectangles and lines of text, in units of which SVG has one for each pixel. */

import type { Paint } from "./palette.ts";

/** Whole units, so that a picture of pixels is as sharp. */
export interface Rectangle {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  readonly paint: Paint;
}

export interface Text {
  /** Where it starts, or ends: see `anchor`. */
  readonly x: number;
  /** The base line. */
  readonly y: number;
  readonly text: string;
  readonly size: "normal" | "title";
  readonly paint: Paint;
  readonly anchor: "start" | "end";
}

export interface Scene {
  readonly width: number;
  readonly height: number;
  readonly title: string;
  /** For those who cannot see it. */
  readonly description: string;
  readonly rectangles: readonly Rectangle[];
  readonly texts: readonly Text[];
}
