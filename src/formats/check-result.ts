/** What checks and repairs of all formats are asked for, and what they say. */

/** Takes one line about one finding. */
export type Report = (line: string) => void;

/** A check's outcome, in the names and units of qemu-img check. */
export interface CheckResult {
  /** Bytes: behind the last cluster in use. undefined: QEMU does not say it of the format. */
  readonly imageEndOffset: number | undefined;
  readonly totalClusters: number;
  readonly allocatedClusters: number;
  readonly fragmentedClusters: number;
  readonly compressedClusters: number;
  readonly leaks: number;
  readonly corruptions: number;
  /** What could not be checked. */
  readonly checkErrors: number;
}

/** leaks: space that nothing uses is given back, nothing else changes much. all: everything that can be repaired. */
export const REPAIR_MODES = ["leaks", "all"] as const;
export type RepairMode = (typeof REPAIR_MODES)[number];

export interface RepairOutcome {
  readonly leaksFixed: number;
  readonly corruptionsFixed: number;
  /** Of a check after the repair. */
  readonly result: CheckResult;
}
