/**
 * The colours of pictures: those of Okabe and Ito ("Color Universal Design"), which people with colour
 * blindness tell apart, and greys for what takes no space.
 */

import type { CellClass } from "../../block/picture-cells.ts";

/** What is drawn: cells of a class, or parts of the picture around them. */
export type Paint = CellClass | "paper" | "ink" | "faint";

export type Theme = "light" | "dark";

/** A colour as 0xrrggbb, in both themes. */
export const COLOURS: Readonly<Record<Paint, Readonly<Record<Theme, number>>>> = {
  data: { light: 0x0072b2, dark: 0x0072b2 },
  compressed: { light: 0x009e73, dark: 0x009e73 },
  zero: { light: 0x56b4e9, dark: 0x56b4e9 },
  backing: { light: 0xcc79a7, dark: 0xcc79a7 },
  unallocated: { light: 0xe8e8e8, dark: 0x2e2e2e },
  hole: { light: 0xc9c9c9, dark: 0x505050 },
  metadata: { light: 0xe69f00, dark: 0xe69f00 },
  snapshot: { light: 0xf0e442, dark: 0xf0e442 },
  leaked: { light: 0xd55e00, dark: 0xd55e00 },
  free: { light: 0x8c8c8c, dark: 0x8c8c8c },
  paper: { light: 0xffffff, dark: 0x161616 },
  ink: { light: 0x1a1a1a, dark: 0xececec },
  faint: { light: 0x6a6a6a, dark: 0xa0a0a0 },
};

/** How a terminal without colours, and one with 256, shows a class. */
export interface TerminalStyle {
  readonly letter: string;
  /** Of the 256 colours: near to those above, and good on dark and light ground. */
  readonly colour: number;
  /** The same where the host order breaks often. */
  readonly broken: { readonly letter: string; readonly colour: number } | undefined;
}

export const TERMINAL_STYLES: Readonly<Record<CellClass, TerminalStyle>> = {
  data: { letter: "D", colour: 32, broken: { letter: "d", colour: 18 } },
  compressed: { letter: "C", colour: 36, broken: { letter: "c", colour: 22 } },
  zero: { letter: "Z", colour: 117, broken: undefined },
  backing: { letter: "B", colour: 175, broken: undefined },
  unallocated: { letter: ".", colour: 252, broken: undefined },
  hole: { letter: "H", colour: 247, broken: undefined },
  metadata: { letter: "M", colour: 214, broken: undefined },
  snapshot: { letter: "S", colour: 227, broken: undefined },
  leaked: { letter: "L", colour: 166, broken: undefined },
  free: { letter: "F", colour: 242, broken: undefined },
};
