/** Findings of a check as lines: no more than somebody reads. */

import type { Report } from "./check-result.ts";

/** Findings that are described, of each check. */
const DESCRIBED_MAX = 100;

export class LimitedReport {
  readonly #report: Report;
  #described = 0;
  #omitted = 0;

  constructor(report: Report) {
    this.#report = report;
  }

  /** @param describe one line; called only if it is shown */
  add(describe: () => string): void {
    if (this.#described < DESCRIBED_MAX) {
      this.#described++;
      this.#report(describe());
    } else {
      this.#omitted++;
    }
  }

  /** Say how many were not described. */
  end(): void {
    if (this.#omitted > 0) this.#report(`${this.#omitted} more findings are not shown`);
    this.#omitted = 0;
  }
}
