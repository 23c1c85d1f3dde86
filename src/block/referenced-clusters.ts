/** What the structures of an image file refer to, whichever part of them a disk shows: the checks' walks. */

import { UnsupportedError } from "../errors.ts";
import type { Report } from "../formats/check-result.ts";
import type { FormatImage } from "../formats/driver.ts";
import { LimitedReport } from "../formats/limited-report.ts";
import { readCheckLayout } from "../formats/qcow2/check/check-layout.ts";
import { Findings } from "../formats/qcow2/check/findings.ts";
import { RefcountTable } from "../formats/qcow2/check/refcount-table.ts";
import { References, type RegionName } from "../formats/qcow2/check/references.ts";
import { TableWalk } from "../formats/qed/check/table-walk.ts";
import { wholeClusters } from "../formats/qed/header.ts";
import { readStoredHeader } from "../formats/qed/stored-header.ts";
import { CLUSTER_USE, type ClusterUse, type ClusterUses } from "./cluster-uses.ts";

/** Clusters of a file that are looked at, at the most: as for a check. */
const CLUSTERS_MAX = 2 ** 31 - 1;

/** What each region of a qcow2 file is; data that the disk shows is marked by whoever maps the disk. */
const REGION_USE: Readonly<Record<RegionName, ClusterUse>> = {
  "the header": CLUSTER_USE.metadata,
  "an L1 table": CLUSTER_USE.metadata,
  "an L2 table": CLUSTER_USE.metadata,
  "the snapshot table": CLUSTER_USE.metadata,
  "the refcount table": CLUSTER_USE.metadata,
  "a refcount block": CLUSTER_USE.metadata,
  "the LUKS header": CLUSTER_USE.metadata,
  "the bitmap directory": CLUSTER_USE.metadata,
  "a bitmap's table": CLUSTER_USE.metadata,
  "a bitmap's cluster": CLUSTER_USE.metadata,
  "a compressed cluster": CLUSTER_USE.snapshot,
  "a data cluster": CLUSTER_USE.snapshot,
};

/** Damage is for a check to tell. */
const silent: Report = () => undefined;

/**
 * Mark metadata, what snapshots refer to, and leaked clusters. References that cannot be right mark nothing.
 *
 * @throws {FormatError | UnsupportedError | StorageError} the structures cannot be followed
 */
export function markReferences(image: FormatImage, uses: ClusterUses): void {
  const clusters = Math.ceil(image.storage.length / image.clusterSize);
  if (image.format === "raw") return;
  if (clusters > CLUSTERS_MAX) {
    const reason = `its file has ${clusters} clusters, and a picture can show no more than ${CLUSTERS_MAX}`;
    throw new UnsupportedError(image.storage.path, reason);
  }
  if (image.format === "qcow2") markQcow2(image, clusters, uses);
  else markQed(image, uses);
}

function markQcow2({ storage, clusterSize }: FormatImage, clusters: number, uses: ClusterUses) {
  const image = { storage, layout: readCheckLayout(storage), length: storage.length };
  const findings = new Findings(silent);
  const table = new RefcountTable(image);
  const references = new References(table, findings, "strict", (offset, size, what) => {
    const first = Math.floor(offset / clusterSize);
    const end = Math.min(clusters, Math.ceil((offset + size) / clusterSize));
    uses.mark(first, end - first, REGION_USE[what]);
  });
  table.countBlocks(references, findings);
  table.forEachUsed(clusters, (cluster) => uses.mark(cluster, 1, CLUSTER_USE.leaked));
}

function markQed({ storage, clusterSize }: FormatImage, uses: ClusterUses): void {
  const { length } = storage;
  const header = readStoredHeader(storage, length);
  const clusters = wholeClusters(length, clusterSize) / clusterSize;
  const walk = new TableWalk(
    { storage, header, length },
    {
      report: new LimitedReport(silent),
      onInvalid: () => undefined,
      onTable: (offset, bytes) => {
        uses.mark(offset / clusterSize, bytes / clusterSize, CLUSTER_USE.metadata);
      },
    },
  );
  walk.run();
  uses.mark(0, Math.min(header.header_size, clusters), CLUSTER_USE.metadata);
  // No table of QED says that a cluster is free.
  const { used } = walk;
  for (const { first, count } of used.gaps(header.header_size)) {
    uses.mark(first, count, CLUSTER_USE.leaked);
  }
  const end = Math.max(used.end, header.header_size);
  if (clusters > end) uses.mark(end, clusters - end, CLUSTER_USE.leaked);
}
