/** What a check finds: counted by kind, and described in a limited number of lines. */

import { hex } from "../../../errors.ts";
import type { Report } from "../../check-result.ts";
import { LimitedReport } from "../../limited-report.ts";

/**
 * Kinds of findings, by what can be done about them:
 *
 *     leak       a refcount is higher than the references: space is lost, nothing else
 *     refcount   a refcount is lower than the references
 *     overflow   more references than the refcount's width can say
 *     structure  the refcount table, or where it says refcount blocks are
 *     copied     a COPIED flag contradicts the refcount
 *     preallocated  an entry of a preallocated cluster that is unaligned: zeros can take its place
 *     snapshot   the snapshot table's form
 *     reference  any other entry that cannot be right: what it meant is lost
 *     unreadable a refcount that cannot be read at all
 */
export const FINDING_KINDS = [
  "leak",
  "refcount",
  "overflow",
  "structure",
  "copied",
  "preallocated",
  "snapshot",
  "reference",
  "unreadable",
] as const;
export type FindingKind = (typeof FINDING_KINDS)[number];

export class Findings {
  readonly #counts = new Map<FindingKind, number>();
  readonly #report: LimitedReport;

  constructor(report: Report) {
    this.#report = new LimitedReport(report);
  }

  /**
   * Note findings of one kind and cause.
   *
   * @param describe one line; called only if it is shown
   */
  add(kind: FindingKind, count: number, describe: () => string): void {
    this.#counts.set(kind, this.count(kind) + count);
    this.#report.add(describe);
  }

  count(...kinds: readonly FindingKind[]): number {
    return kinds.reduce((sum, kind) => sum + (this.#counts.get(kind) ?? 0), 0);
  }

  /** What qemu-img counts as corruptions. */
  corruptions(): number {
    const harmless: readonly FindingKind[] = ["leak", "unreadable"];
    return this.count(...FINDING_KINDS.filter((kind) => !harmless.includes(kind)));
  }

  /** Say how many were not described. */
  end(): void {
    this.#report.end();
  }
}

/** A host offset in a description; Infinity: all that is known of it is that it is above 2^53. */
export function offsetText(offset: number): string {
  return offset === Number.POSITIVE_INFINITY ? "an offset above 2^53" : hex(offset);
}
