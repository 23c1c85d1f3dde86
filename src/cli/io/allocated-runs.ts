/** What the image itself says of its disk, whatever is below it. */

import { BlockStatus } from "../../block/block-status.ts";
import type { Disk } from "../../block/disk.ts";

/** A run of bytes that the image itself has, or has not: data and zeros alike. */
export interface Run {
  readonly offset: number;
  length: number;
  readonly isAllocated: boolean;
}

/** Runs from `start` up to `end`, which lies in the disk; neighbours differ. */
export function* runsOf(disk: Disk, start: number, end: number): Generator<Run> {
  const status = new BlockStatus();
  let run: Run | undefined;
  for (let offset = start; offset < end; offset += status.length) {
    disk.statusAt(offset, end - offset, status);
    const isAllocated = status.present && status.depth === 0;
    if (run?.isAllocated === isAllocated) run.length += status.length;
    else {
      if (run !== undefined) yield run;
      run = { offset, length: status.length, isAllocated };
    }
  }
  if (run !== undefined) yield run;
}
