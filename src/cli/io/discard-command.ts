/** `discard`: the bytes of a range are not needed any more. */

import type { Disk } from "../../block/disk.ts";
import { TsimgfsError } from "../../errors.ts";
import { runsOf } from "./allocated-runs.ts";
import {
  type IoCall,
  type IoCommand,
  type IoContext,
  parseOptions,
  usageFailure,
} from "./command.ts";
import {
  attempt,
  LIMIT_TEXT,
  parseRange,
  type Range,
  type ReportOptions,
  report,
} from "./request.ts";

export const DISCARD_COMMAND: IoCommand = {
  name: "discard",
  alias: "d",
  words: [2, Number.POSITIVE_INFINITY],
  usage: "[-Cq] off len",
  summary: "discards a number of bytes at a specified offset",
  help: [
    "Whole clusters become zeros without a place on the host; parts of clusters stay as they are.",
    "",
    "-C  report in one line for programs: bytes, ops, time, bytes/s, ops/s",
    "-q  do not report",
    "",
    "Example: discard 1M 64k",
  ],
  writes: true,
  run: discard,
};

function discard(io: IoContext, call: IoCall): void {
  const options: ReportOptions = { isQuiet: false, form: "people" };
  const operands = parseOptions(DISCARD_COMMAND, call, "Cq", (letter) => {
    if (letter === "C") options.form = "programs";
    else options.isQuiet = true;
  });
  if (operands.length !== 2) throw usageFailure(DISCARD_COMMAND);
  const range = parseRange(operands, LIMIT_TEXT);
  const seconds = attempt(io, "discard", range, () => discardRange(io, range));
  report(options, { verb: "discard", ...range, seconds });
}

/** A discard is advice, as for QEMU: what would take writing zeros is left undone. */
function discardRange(io: IoContext, range: Range): void {
  const { disk } = io;
  const { format, clusterSize } = disk.chain.image;
  if (io.discard === "ignore" || format === "qed") return;
  const unit = format === "raw" ? 1 : clusterSize;
  const size = disk.currentSize();
  const end = range.offset + range.count;
  const first = Math.ceil(range.offset / unit) * unit;
  // The last cluster of a disk may be a part of one.
  const last = end === size ? size : Math.floor(end / unit) * unit;
  if (last <= first) return;
  if (disk.chain.images.length > 1) {
    zeroByTables(disk, first, last);
    return;
  }
  // What is not allocated reads as zeros, and stays so.
  for (const { offset, length, isAllocated } of runsOf(disk, first, last)) {
    const from = Math.floor(offset / unit) * unit;
    const to = Math.min(Math.ceil((offset + length) / unit) * unit, last);
    if (isAllocated) zeroByTables(disk, from, to);
  }
}

function zeroByTables(disk: Disk, from: number, to: number): void {
  try {
    disk.writeZeroes(from, to - from, { unmap: true, noFallback: true });
  } catch (error) {
    if (!(error instanceof TsimgfsError && error.code === "ENOTSUP")) throw error;
  }
}
