/** Checking and repairing one image file, whatever its format: for `check`. */

import { UsageError } from "../errors.ts";
import type { CheckResult, RepairMode, Report } from "../formats/check-result.ts";
import type { FormatName } from "../formats/driver.ts";
import { determineFormat } from "../formats/formats.ts";
import { checkQcow2 } from "../formats/qcow2/check/analysis.ts";
import { repairQcow2 } from "../formats/qcow2/check/repair.ts";
import { checkQed } from "../formats/qed/check/analysis.ts";
import { repairQed } from "../formats/qed/check/repair.ts";
import { lockForReading, lockForWriting } from "../storage/image-lock.ts";
import { LocalFile } from "../storage/local-file.ts";

export interface CheckOptions {
  /** As the user states it. */
  readonly format: FormatName | undefined;
  readonly repair: RepairMode | undefined;
  /** Check it even if somebody may be writing to it. */
  readonly forceShare: boolean;
  /** Takes a line for each finding, within limits. */
  readonly report: Report;
}

/** How it went: what a check found in the end, and what a repair did before. */
export interface CheckedImageFile {
  readonly format: FormatName;
  /** undefined: there is no check for the format. */
  readonly outcome: CheckOutcome | undefined;
}

export interface CheckOutcome extends CheckResult {
  readonly leaksFixed: number;
  readonly corruptionsFixed: number;
}

/**
 * @throws {TsimgfsError} the image cannot be opened, is in use, or the check cannot be completed
 */
export function checkImage(path: string, options: CheckOptions): CheckedImageFile {
  const { repair, forceShare } = options;
  if (repair !== undefined && forceShare) {
    throw new UsageError(
      "--force-share",
      "is for checks only: nobody else may write during a repair",
    );
  }
  const file = LocalFile.open(path, repair === undefined ? "read-only" : "read-write");
  try {
    const format = determineFormat(file, options.format);
    if (format === "raw") return { format, outcome: undefined };
    if (repair !== undefined) lockForWriting(file);
    else if (!forceShare) lockForReading(file);
    return { format, outcome: checkFile(file, format, options) };
  } finally {
    file.close();
  }
}

function checkFile(
  file: LocalFile,
  format: "qcow2" | "qed",
  { repair, report }: CheckOptions,
): CheckOutcome {
  const engine = ENGINES[format];
  if (repair === undefined) {
    return { ...engine.check(file, report), leaksFixed: 0, corruptionsFixed: 0 };
  }
  const { result, leaksFixed, corruptionsFixed } = engine.repair(file, repair, report);
  return { ...result, leaksFixed, corruptionsFixed };
}

const ENGINES = {
  qcow2: { check: checkQcow2, repair: repairQcow2 },
  qed: { check: checkQed, repair: repairQed },
} as const;
