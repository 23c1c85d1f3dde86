/** Where a picture goes: a file whose name says the form, standard output, or the terminal. */

import fs from "node:fs";
import { extname } from "node:path";
import type { PictureMap } from "../../block/picture-map.ts";
import { printable, StorageError, UsageError } from "../../errors.ts";
import { nodeErrorCode, nodeErrorName } from "../../syscalls/errno-names.ts";
import { wantsColours } from "../../terminal-colours.ts";
import { print } from "../print.ts";
import { COLUMNS, layOut, ROWS_MAX } from "./layout.ts";
import type { Theme } from "./palette.ts";
import { renderPng } from "./png.ts";
import { renderSvg } from "./svg.ts";
import { renderTerminal, type TerminalForm, terminalCells } from "./terminal.ts";

/** Columns where nobody says how many there are. */
const WIDTH_DEFAULT = 80;

export interface PictureOutput {
  /** Cells that each map has room for. */
  readonly cellsMax: number;
  /** The file that is going to be written; undefined: standard output. */
  readonly path: string | undefined;
  /** @throws {StorageError} the file cannot be written */
  write(map: PictureMap): void;
}

/**
 * @param target a file, "-": SVG on standard output; undefined: what a terminal shows
 * @param theme undefined: light, and of SVG as the reader has it
 * @throws {UsageError} no form that there is
 */
export function pictureOutput(target: string | undefined, theme: Theme | undefined): PictureOutput {
  if (target === undefined) {
    const form = terminalForm();
    return {
      cellsMax: terminalCells(form),
      path: undefined,
      write: (map) => print(renderTerminal(map, form)),
    };
  }
  const cellsMax = COLUMNS * ROWS_MAX;
  if (target === "-") {
    return { cellsMax, path: undefined, write: (map) => print(renderSvg(layOut(map), theme)) };
  }
  const render = rendererOf(target, theme);
  return { cellsMax, path: target, write: (map) => writeFile(target, render(map)) };
}

function rendererOf(path: string, theme: Theme | undefined): (map: PictureMap) => string | Buffer {
  switch (extname(path).toLowerCase()) {
    case ".svg":
      return (map) => renderSvg(layOut(map), theme);
    case ".png":
      return (map) => renderPng(layOut(map), theme ?? "light");
    default:
      throw new UsageError("--picture", `${path} is named neither .svg nor .png`);
  }
}

function terminalForm(): TerminalForm {
  const { isTTY, columns } = process.stdout;
  return { width: columns || WIDTH_DEFAULT, colours: wantsColours(isTTY) ? 256 : undefined };
}

function writeFile(path: string, content: string | Buffer): void {
  try {
    fs.writeFileSync(path, content);
  } catch (cause) {
    const code = nodeErrorCode(cause);
    throw new StorageError(code, printable(path), `cannot be written: ${nodeErrorName(cause)}`, {
      cause,
    });
  }
}
