/** The check and the repair of the engine, run on files, with results as the oracle gives them. */

import { checkImage } from "../../src/block/check-image.ts";
import { TsimgfsError } from "../../src/errors.ts";
import type { RepairMode } from "../../src/formats/check-result.ts";
import type { CheckCounts } from "./check-oracle.ts";

export interface EngineCheck {
  readonly status: number;
  /** undefined: it did not get that far; then `lines` ends with the reason. */
  readonly counts: CheckCounts | undefined;
  readonly leaksFixed: number;
  readonly corruptionsFixed: number;
  readonly lines: readonly string[];
}

export function engineCheck(
  path: string,
  repair?: RepairMode,
  format: "qcow2" | "qed" = "qcow2",
): EngineCheck {
  const lines: string[] = [];
  try {
    const { outcome } = checkImage(path, {
      format,
      repair,
      forceShare: false,
      report: (line) => lines.push(line),
    });
    if (outcome === undefined) throw new Error(`no check of ${format}`);
    const { leaksFixed, corruptionsFixed, ...result } = outcome;
    const { checkErrors, corruptions, leaks } = result;
    const status = checkErrors > 0 ? 1 : corruptions > 0 ? 2 : leaks > 0 ? 3 : 0;
    const counts = { status, ...result, imageEndOffset: result.imageEndOffset ?? 0 };
    return { status, counts, leaksFixed, corruptionsFixed, lines };
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
    lines.push(error.message);
    return { status: 1, counts: undefined, leaksFixed: 0, corruptionsFixed: 0, lines };
  }
}
