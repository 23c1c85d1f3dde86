/** Names in the tree: of devices after their images, of snapshots after what the image calls them. */

import { basename } from "node:path";

/** Endings of image files that a device's name does without. */
const IMAGE_SUFFIX = /\.(qcow2|qed|raw|img)$/i;

/** At the root of a mount; no device is named so, since they have suffixes. */
export const METRICS_NAME = "metrics";

export const DEVICE_SUFFIX = ".raw";
/** Linux's limit on a name, bytes. */
const NAME_MAX = 255;

/** `vm` for `/images/vm.qcow2`: the tree shows `vm.raw`, `vm.stats.json` and `vm.snapshots`. */
export function deviceNameOf(imagePath: string): string {
  const name = basename(imagePath);
  const stem = name.replace(IMAGE_SUFFIX, "");
  return stem === "" ? name : stem;
}

// Slashes, control characters, and what reorders text on a terminal.
// biome-ignore format: the comment below is for this line
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const UNSAFE = /[/\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

/**
 * File names for snapshots, in the same order: the snapshot's name with unsafe characters as `_`; its
 * id where it has no name; the id after the name where two would be equal. Without the suffix.
 */
export function snapshotFileNames(
  snapshots: Iterable<{ readonly id: string; readonly name: string }>,
): string[] {
  const used = new Set<string>();
  return Array.from(snapshots, ({ id, name }, index) => {
    const safeId = id.replace(UNSAFE, "_");
    const wanted = limitBytes(name.replace(UNSAFE, "_"), NAME_MAX - DEVICE_SUFFIX.length) || safeId;
    const stem = `${limitBytes(wanted, 100)}~${limitBytes(safeId, 100)}`;
    let unique = wanted === "" || used.has(wanted) ? stem : wanted;
    for (let number = index; used.has(unique); number++) unique = `${stem}~${number}`;
    used.add(unique);
    return unique;
  });
}

/** The longest start of `text` with at most `limit` bytes of UTF-8. */
function limitBytes(text: string, limit: number): string {
  if (Buffer.byteLength(text) <= limit) return text;
  let result = "";
  let bytes = 0;
  for (const character of text) {
    bytes += Buffer.byteLength(character);
    if (bytes > limit) break;
    result += character;
  }
  return result;
}
