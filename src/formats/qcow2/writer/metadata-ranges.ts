/**
 * Where the metadata of a qcow2 image is. Source: QEMU's overlap checks, main-header, active-l1,
 * active-l2, refcount-table, refcount-block, snapshot-table.
 */

import { MetadataMap, type MetadataRange } from "../../metadata-map.ts";
import type { Qcow2Layout } from "../layout.ts";
import type { SharedSnapshotTable } from "../snapshots/shared-snapshot-table.ts";
import { NUMBER, type SharedState } from "./shared-state.ts";

/** Active L2 tables and refcount blocks are the clusters of the set. */
export function qcow2MetadataMap(memory: SharedArrayBuffer): MetadataMap {
  return new MetadataMap(memory, "an L2 table or refcount block");
}

/** The header and the tables that the header names, where they are now. */
export function metadataRanges(
  { clusterSize, extensions }: Qcow2Layout,
  state: SharedState,
  snapshots: SharedSnapshotTable,
): MetadataRange[] {
  const range = (name: string, offset: number, bytes: number): MetadataRange => ({
    name,
    firstCluster: offset / clusterSize,
    clusters: Math.ceil(bytes / clusterSize),
  });
  const refcountTable = state.get(NUMBER.refcountTableOffset);
  const ranges = [
    range("the header", 0, clusterSize),
    range("the L1 table", state.get(NUMBER.l1Offset), state.get(NUMBER.l1Size) * 8),
    range(
      "the refcount table",
      refcountTable,
      state.get(NUMBER.refcountTableClusters) * clusterSize,
    ),
  ];
  const { cryptoHeader } = extensions;
  if (cryptoHeader !== undefined) {
    ranges.push(range("the LUKS header", cryptoHeader.offset, cryptoHeader.length));
  }
  if (snapshots.count > 0) {
    ranges.push(range("the snapshot table", snapshots.offset, snapshots.size));
  }
  return ranges;
}
