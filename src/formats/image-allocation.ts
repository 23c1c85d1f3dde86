/** What the bytes of an image file are for, whatever its format; and what its writer has reserved. */

import type { Storage } from "../storage/storage.ts";
import type { FileAllocation } from "./allocation.ts";
import type { FormatLayout, FormatWriting } from "./formats.ts";
import { countQcow2Allocation, type RefcountTablePlace } from "./qcow2/allocation.ts";
import type { Qcow2Layout } from "./qcow2/layout.ts";
import * as qcow2 from "./qcow2/writer/shared-state.ts";
import { countQedAllocation } from "./qed/allocation.ts";
import type { QedLayout } from "./qed/layout.ts";
import * as qed from "./qed/writer/shared-state.ts";
import { countRawAllocation } from "./raw/allocation.ts";

/**
 * Count an image file. Takes no lock: what is written meanwhile is counted as it was before or after.
 *
 * @param writing what the writers of the image share; undefined: it is only read
 * @throws {CorruptionError | UnsupportedError | StorageError} it cannot be counted
 */
export function countAllocation(
  layout: FormatLayout,
  storage: Storage,
  writing: FormatWriting | undefined,
): FileAllocation {
  switch (layout.format) {
    case "raw":
      return countRawAllocation(storage);
    case "qcow2":
      return countQcow2Allocation(layout, refcountTablePlace(layout, writing), storage);
    case "qed":
      return countQedAllocation(layout.header, storage, {
        changes: writing === undefined ? "none" : "expected",
      });
  }
}

/** Count an external data file: nobody counts references in it, all of it is the disk's. */
export function countDataFile(storage: Storage): FileAllocation {
  return countRawAllocation(storage);
}

/**
 * Bytes that the writers of an image have reserved for what will be written, now. Nothing is stored there:
 * of qcow2 they are used, since refcounts say so; of QED not, since no table refers to them.
 */
export function reservedBytes(layout: FormatLayout, writing: FormatWriting | undefined): number {
  if (layout.format === "qcow2" && writing?.format === "qcow2") {
    const state = new qcow2.SharedState(writing.state);
    return state.get(qcow2.NUMBER.reservedClusters) * layout.clusterSize;
  }
  if (layout.format === "qed" && writing?.format === "qed")
    return reservedOfQed(layout, writing.state);
  return 0;
}

function reservedOfQed({ header }: QedLayout, memory: SharedArrayBuffer): number {
  const state = new qed.SharedState(memory);
  const clusters = state.get(qed.NUMBER.reservedEnd) - state.get(qed.NUMBER.nextCluster);
  return Math.max(clusters, 0) * header.cluster_size;
}

function refcountTablePlace(
  { header }: Qcow2Layout,
  writing: FormatWriting | undefined,
): RefcountTablePlace {
  if (writing?.format !== "qcow2") {
    return { offset: header.refcount_table_offset, clusters: header.refcount_table_clusters };
  }
  const state = new qcow2.SharedState(writing.state);
  // In this order: a table that takes the place of another is larger, and its length is set last.
  const clusters = state.get(qcow2.NUMBER.refcountTableClusters);
  return { offset: state.get(qcow2.NUMBER.refcountTableOffset), clusters };
}
