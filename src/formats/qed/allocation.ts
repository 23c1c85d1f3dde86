/** What the bytes of a QED image are for: the header, and what its tables refer to, are used. */

import { CorruptionError, hex, UnsupportedError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { AllocationCounter, type FileAllocation } from "../allocation.ts";
import { LimitedReport } from "../limited-report.ts";
import { TableWalk } from "./check/table-walk.ts";
import type { Header } from "./header.ts";

/** Our limit: a bit for each takes 64 MiB of memory. With 64 KiB clusters, a file of 32 TiB. */
const CLUSTERS_MAX = 2 ** 29;

/** How often tables are read again that refer to what the file has got meanwhile. */
const TRIES = 4;

/** Whether others change the image meanwhile. */
interface Surroundings {
  readonly changes: "none" | "expected";
}

/**
 * What others zero and allocate while tables are read may be counted as it was before or after.
 *
 * @throws {CorruptionError} tables refer to what cannot be right
 * @throws {UnsupportedError | StorageError}
 */
export function countQedAllocation(
  header: Header,
  storage: Storage,
  { changes }: Surroundings,
): FileAllocation {
  const clusterSize = header.cluster_size;
  const { used, shared } = walkTables(header, storage);
  // A cluster that was taken from one place of the disk and given to another is met twice.
  if (shared > 0 && changes === "none") {
    const reason = `its tables refer to ${shared} clusters more than once; tsimgfs check tells which`;
    throw new CorruptionError(storage.path, reason);
  }
  const counter = new AllocationCounter(storage);
  counter.addUsed(0, header.header_size * clusterSize);
  let first = header.header_size;
  for (const gap of used.gaps(first)) {
    counter.addUsed(first * clusterSize, gap.first * clusterSize);
    first = gap.first + gap.count;
  }
  if (used.end > first) counter.addUsed(first * clusterSize, used.end * clusterSize);
  return counter.finish();
}

function walkTables(header: Header, storage: Storage): TableWalk {
  for (let left = TRIES; ; left--) {
    const length = storage.currentLength();
    if (length / header.cluster_size > CLUSTERS_MAX) {
      const reason = `its file has more clusters than the limit of ${CLUSTERS_MAX} of these statistics`;
      throw new UnsupportedError(storage.path, reason);
    }
    let invalid = -1;
    const walk = new TableWalk(
      { storage, header, length },
      {
        report: new LimitedReport(() => undefined),
        onInvalid: (entryOffset) => {
          if (invalid < 0) invalid = entryOffset;
        },
      },
    );
    walk.run();
    if (invalid < 0) return walk;
    if (left === 0 || storage.currentLength() === length) {
      const reason = `the table entry at ${hex(invalid)} is not the offset of a place in the file`;
      throw new CorruptionError(storage.path, reason, { offset: invalid });
    }
  }
}
