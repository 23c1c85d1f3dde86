/** What streaming does to an image: which images it copies from, and which one is its backing file then. */

import fs from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { TsimgfsError, UsageError } from "../errors.ts";
import type { BackingReference } from "../formats/driver.ts";
import { backingFileOf } from "../formats/formats.ts";
import type { SharedLayer } from "./open-chain.ts";
import { protocolOf } from "./referenced-file.ts";

export interface StreamPlan {
  /** Index in the chain of the first image that is not copied from. */
  readonly bottom: number;
  /** The backing file afterwards; undefined: none. */
  readonly backing: BackingReference | undefined;
}

/**
 * Plan to copy what an image lacks.
 *
 * @param layers of an open chain
 * @param base the image below which nothing is copied from, as the user names it; undefined: all are
 * @throws {TsimgfsError} ENODATA: it has no backing file
 * @throws {UsageError} `base` is not below it
 */
export function planStream(layers: readonly SharedLayer[], base: string | undefined): StreamPlan {
  const [top] = layers;
  if (top === undefined) throw new RangeError("a chain has at least one image");
  const { path } = top.file;
  if (layers.length === 1) throw new TsimgfsError("ENODATA", path, "has no backing file");
  if (base === undefined) return { bottom: layers.length, backing: undefined };
  const bottom = layers.findIndex(({ file }) => isSameFile(file.fd, base));
  const layer = layers[bottom];
  if (layer === undefined) throw new UsageError(path, `${base} is not in its backing chain`);
  if (bottom === 0) throw new UsageError(path, "cannot be its own base");
  return { bottom, backing: { name: baseName(layers, bottom), format: layer.layout.format } };
}

/** @throws {UsageError} there is no such file */
function isSameFile(fd: number, path: string): boolean {
  const open = fs.fstatSync(fd);
  const named = statOf(path);
  const isDevice = open.isBlockDevice() && named.isBlockDevice();
  return isDevice ? open.rdev === named.rdev : open.dev === named.dev && open.ino === named.ino;
}

function statOf(path: string): fs.Stats {
  try {
    return fs.statSync(path);
  } catch {
    throw new UsageError("--base", `${path}: no such file`);
  }
}

/**
 * How the top image is to name one below it: as the image above that one does, if that means the same
 * there, else as it is found from the directory of the top image.
 */
function baseName(layers: readonly SharedLayer[], bottom: number): string {
  const [top, overlay, base] = [layers[0], layers[bottom - 1], layers[bottom]];
  if (top === undefined || overlay === undefined || base === undefined) {
    throw new RangeError(`image ${bottom} of a chain of ${layers.length}`);
  }
  const directory = directoryOf(top.file.path);
  const name = backingFileOf(overlay.layout)?.name;
  if (name !== undefined) {
    if (name.startsWith("/") || directoryOf(overlay.file.path) === directory) return name;
  }
  const place = join(directoryOf(base.file.path), basename(base.file.path));
  const found = relative(directory, place);
  // A colon before any slash would make a protocol of it.
  return protocolOf(found) === undefined ? found : `./${found}`;
}

/** The real directory of an image: relative names start where its path leads, symbolic links followed. */
function directoryOf(path: string): string {
  return fs.realpathSync(dirname(path));
}
