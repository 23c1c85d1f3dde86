/** The refcounts on disk against the references that there are. */

import { refcountMax } from "./check-layout.ts";
import type { Findings } from "./findings.ts";
import type { RefcountTable } from "./refcount-table.ts";
import type { ReferenceCounts } from "./reference-counts.ts";

/**
 * Note leaks, refcounts that are too low, and those that cannot be read.
 *
 * @returns the highest cluster in use
 */
export function compareRefcounts(
  table: RefcountTable,
  counts: ReferenceCounts,
  findings: Findings,
): number {
  const max = refcountMax(table.image.layout);
  const run = new Float64Array(table.sliceEntries);
  const { clusters } = counts;
  let highest = 0;
  const compare = (cluster: number, refcount: number): void => {
    const references = counts.get(cluster);
    if (refcount !== 0 || references !== 0) highest = cluster;
    if (refcount !== references) addMismatch(findings, cluster, refcount, references, max);
  };
  for (let start = 0; start < clusters; ) {
    const block = Math.floor(start / table.blockEntries);
    const blockEnd = endOf(start, table.blockEntries, clusters);
    if (!table.isReadable(block)) {
      const first = start;
      findings.add(
        "unreadable",
        blockEnd - start,
        () => `the refcounts of clusters ${first} to ${blockEnd - 1} cannot be read`,
      );
      start = blockEnd;
      continue;
    }
    const isAbsent = table.blockOffset(block) === 0;
    const end = isAbsent ? blockEnd : endOf(start, table.sliceEntries, clusters);
    const count = table.readRun(start, end - start, run);
    for (let index = 0; index < count; index++) compare(start + index, run[index] ?? 0);
    if (count === 0) {
      let cluster = counts.nextReferenced(start, end);
      for (; cluster < end; cluster = counts.nextReferenced(cluster + 1, end)) compare(cluster, 0);
    }
    start = end;
  }
  return highest;
}

/** The end of the block or slice of `entries` refcounts that a cluster's is in. */
function endOf(cluster: number, entries: number, clusters: number): number {
  return Math.min(clusters, (Math.floor(cluster / entries) + 1) * entries);
}

function addMismatch(
  findings: Findings,
  cluster: number,
  refcount: number,
  references: number,
  max: number,
): void {
  const describe = (): string =>
    `cluster ${cluster}: refcount ${refcount}, ${references} reference${references === 1 ? "" : "s"}`;
  if (references > max) findings.add("overflow", references - max, describe);
  const expected = Math.min(references, max);
  if (refcount > expected) findings.add("leak", 1, describe);
  else if (refcount < expected) findings.add("refcount", 1, describe);
}
