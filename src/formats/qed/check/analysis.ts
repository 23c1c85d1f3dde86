/** One whole check of a QED image, which changes nothing. */

import { UnsupportedError } from "../../../errors.ts";
import type { Storage } from "../../../storage/storage.ts";
import type { CheckResult, Report } from "../../check-result.ts";
import { LimitedReport } from "../../limited-report.ts";
import { wholeClusters } from "../header.ts";
import { readStoredHeader } from "../stored-header.ts";
import { type CheckedQed, TableWalk } from "./table-walk.ts";
import type { UsedClusters } from "./used-clusters.ts";

/** Our limit: a bit for each takes 256 MiB of memory. */
const CLUSTERS_MAX = 2 ** 31 - 1;

/** What a check knows in the end: a repair starts from it. */
export interface Analysis {
  readonly image: CheckedQed;
  readonly result: CheckResult;
  /** Entries whose offsets cannot be right; the other corruptions are clusters that are referred to twice. */
  readonly invalid: number;
  readonly used: UsedClusters;
  /** Bytes: behind the last cluster in use. */
  readonly usedEnd: number;
  /** Leaked clusters behind that. */
  readonly leaksAtEnd: number;
}

/** @throws {UnsupportedError | StorageError} the check cannot be completed */
export function analyse(image: CheckedQed, report: Report): Analysis {
  const { storage, header, length } = image;
  const clusterSize = header.cluster_size;
  const clusters = wholeClusters(length, clusterSize) / clusterSize;
  if (clusters > CLUSTERS_MAX) {
    const reason = `its file has ${clusters} clusters, and a check can count no more than ${CLUSTERS_MAX}`;
    throw new UnsupportedError(storage.path, reason);
  }
  const limited = new LimitedReport(report);
  const walk = new TableWalk(image, { report: limited, onInvalid: () => undefined });
  walk.run();
  const { used, invalid, shared, allocatedClusters, fragmentedClusters } = walk;
  const leaks = clusters - header.header_size - used.count;
  const leaksAtEnd = clusters - used.end;
  if (leaks > 0) limited.add(() => describeLeaks(leaks, leaksAtEnd));
  limited.end();
  const result: CheckResult = {
    imageEndOffset: undefined,
    totalClusters: Math.ceil(header.image_size / clusterSize),
    allocatedClusters,
    fragmentedClusters,
    compressedClusters: 0,
    leaks,
    corruptions: invalid + shared,
    checkErrors: 0,
  };
  return { image, result, invalid, used, usedEnd: used.end * clusterSize, leaksAtEnd };
}

function describeLeaks(leaks: number, leaksAtEnd: number): string {
  const what = leaks === 1 ? "1 cluster is" : `${leaks} clusters are`;
  return `${what} referred to by nothing, ${leaksAtEnd} of them at the end of the file`;
}

/**
 * Check an image, as `qemu-img check`.
 *
 * @param report takes a line for each finding, within limits
 * @throws {FormatError | UnsupportedError | StorageError} the check cannot be completed
 */
export function checkQed(storage: Storage, report: Report): CheckResult {
  const { length } = storage;
  return analyse({ storage, header: readStoredHeader(storage, length), length }, report).result;
}
