/** What only root may do. */

import { TsimgfsError } from "../../errors.ts";

/** @throws {TsimgfsError} EPERM, with what can be done without root */
export function requireRoot(command: string): void {
  if (process.geteuid?.() === 0) return;
  throw new TsimgfsError(
    "EPERM",
    command,
    "loop devices need root; without root, use tsimgfs mount, and debugfs, fuse2fs or mtools on NAME.partitions/N.raw",
  );
}
