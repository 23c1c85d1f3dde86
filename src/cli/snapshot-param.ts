/** How commands name the snapshot that they read: by ID or name, or with both words of qemu-img. */

import { findSnapshot, findSnapshotWith } from "../block/find-snapshot.ts";
import { UsageError } from "../errors.ts";
import type { FormatImage } from "../formats/driver.ts";
import { OptionList, type OptionRow } from "./option-list.ts";

const PREFIX = "snapshot.";
const ROWS = [
  ["snapshot.id", "str", "ID of the snapshot"],
  ["snapshot.name", "str", "name of the snapshot"],
] as const satisfies readonly OptionRow[];

/**
 * The number of the snapshot that `-l` asks for.
 *
 * @param param ID or name; or `snapshot.id=ID,snapshot.name=NAME`, of which one may be left out
 * @throws {TsimgfsError} ENOENT: there is none
 * @throws {UsageError} other words than those
 */
export function snapshotNumber(image: FormatImage, param: string): number {
  if (!param.startsWith(PREFIX)) return findSnapshot(image, param);
  const list = new OptionList<(typeof ROWS)[number][0]>(
    ROWS,
    [param],
    (name) => `there is no "${name}"; state snapshot.id=ID,snapshot.name=NAME`,
    "-l",
  );
  const [id, name] = [list.text("snapshot.id"), list.text("snapshot.name")];
  if (id === undefined && name === undefined) throw new UsageError("-l", "states no snapshot");
  return findSnapshotWith(image, { id, name });
}
