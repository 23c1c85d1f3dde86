/** One whole check of a qcow2 image, which changes nothing. */

import { UnsupportedError } from "../../../errors.ts";
import type { Storage } from "../../../storage/storage.ts";
import type { CheckResult, Report } from "../../check-result.ts";
import { type CheckedImage, readCheckLayout } from "./check-layout.ts";
import { compareRefcounts } from "./compare-refcounts.ts";
import { checkCopiedFlags } from "./copied-flags.ts";
import { Findings } from "./findings.ts";
import { RefcountTable } from "./refcount-table.ts";
import { References } from "./references.ts";
import type { SnapshotMode } from "./snapshot-entries.ts";

/** QEMU's limit. */
const CLUSTERS_MAX = 2 ** 31 - 1;

/** What a check knows in the end: a repair starts from it. */
export interface Analysis {
  readonly image: CheckedImage;
  readonly findings: Findings;
  readonly references: References;
  readonly table: RefcountTable;
  /** Clusters past the end of the file that refcounts say are in use. No check counts them. */
  readonly usedPastEnd: number;
  readonly result: CheckResult;
}

/** @throws {FormatError | UnsupportedError | StorageError} the check cannot be completed */
export function analyse(
  image: CheckedImage,
  { mode, report }: { mode: SnapshotMode; report: Report },
): Analysis {
  const { storage, layout, length } = image;
  const clusters = Math.ceil(length / layout.clusterSize);
  if (clusters > CLUSTERS_MAX) {
    const reason = `its file has ${clusters} clusters, and a check can count no more than ${CLUSTERS_MAX}`;
    throw new UnsupportedError(storage.path, reason);
  }
  const findings = new Findings(report);
  const table = new RefcountTable(image);
  const references = new References(table, findings, mode);
  table.countBlocks(references, findings);
  const highest = compareRefcounts(table, references.counts, findings);
  checkCopiedFlags({ references, table }, findings);
  findings.end();
  let usedPastEnd = 0;
  table.forEachUsedFrom(references.counts.clusters, () => usedPastEnd++);
  const result: CheckResult = {
    imageEndOffset: (highest + 1) * layout.clusterSize,
    totalClusters: Math.ceil(layout.virtualSize / layout.clusterSize),
    ...references.statistics,
    leaks: findings.count("leak"),
    corruptions: findings.corruptions(),
    checkErrors: findings.count("unreadable"),
  };
  return { image, findings, references, table, usedPastEnd, result };
}

/**
 * Check an image, as `qemu-img check`.
 *
 * @throws {FormatError | UnsupportedError | StorageError} the check cannot be completed
 */
export function checkQcow2(storage: Storage, report: Report): CheckResult {
  const image = { storage, layout: readCheckLayout(storage), length: storage.length };
  return analyse(image, { mode: "strict", report }).result;
}
