/** What a check finds: counted by kind, and described in a limited number of lines. */

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

/** Takes one line about one finding. */
export type Report = (line: string) => void;

/** Findings that are described, of each check. */
const DESCRIBED_MAX = 100;

/** A check's outcome, in the names and units of qemu-img check. */
export interface CheckResult {
  /** Bytes: behind the last cluster in use. */
  readonly imageEndOffset: number;
  readonly totalClusters: number;
  readonly allocatedClusters: number;
  readonly fragmentedClusters: number;
  readonly compressedClusters: number;
  readonly leaks: number;
  readonly corruptions: number;
  /** What could not be checked. */
  readonly checkErrors: number;
}

export class Findings {
  readonly #counts = new Map<FindingKind, number>();
  readonly #report: Report;
  #described = 0;
  #omitted = 0;

  constructor(report: Report) {
    this.#report = report;
  }

  /**
   * Note findings of one kind and cause.
   *
   * @param describe one line; called only if it is shown
   */
  add(kind: FindingKind, count: number, describe: () => string): void {
    this.#counts.set(kind, this.count(kind) + count);
    if (this.#described < DESCRIBED_MAX) {
      this.#described++;
      this.#report(describe());
    } else {
      this.#omitted++;
    }
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
    if (this.#omitted > 0) this.#report(`${this.#omitted} more findings are not shown`);
    this.#omitted = 0;
  }
}
