/**
 * New refcount structures in place of damaged ones. They are written to free clusters and made durable
 * before the header refers to them, so that at every instant one set or the other is in force.
 */

import { UnsupportedError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { REFCOUNT_TABLE_SIZE_MAX } from "../header.ts";
import { writeRefcount } from "../refcount-entry.ts";
import { HeaderWriter } from "../writer/header-writer.ts";
import type { Analysis } from "./analysis.ts";
import { refcountMax } from "./check-layout.ts";
import type { FreeClusters } from "./free-clusters.ts";
import { BLOCK_FAULT } from "./refcount-table.ts";

const ENTRY_SIZE = 8;

/** Blocks whose references were counted all the same. */
const COUNTED_FAULTS: readonly number[] = [
  BLOCK_FAULT.none,
  BLOCK_FAULT.shared,
  BLOCK_FAULT.saturated,
];

/** Where the new structures go. */
interface Plan {
  /** The first cluster of the table. */
  table: number;
  tableClusters: number;
  /** The cluster of each block; 0: there is none. */
  readonly blocks: number[];
}

/**
 * Whether refcounts cannot just be corrected where they are: a block is missing or damaged, or the
 * table is, or something else lies over it.
 */
export function needsRebuild({ image, table, references }: Analysis): boolean {
  const { counts } = references;
  const { header, clusterSize } = image.layout;
  if (header.refcount_table_clusters === 0) return true;
  if (table.faults.some((fault) => fault !== BLOCK_FAULT.none)) return true;
  const first = header.refcount_table_offset / clusterSize;
  for (let index = 0; index < header.refcount_table_clusters; index++) {
    if (counts.get(first + index) !== 1) return true;
  }
  let cluster = counts.nextReferenced(0);
  while (cluster !== Number.POSITIVE_INFINITY) {
    const block = Math.floor(cluster / table.blockEntries);
    if (table.blockOffset(block) === 0) return true;
    cluster = counts.nextReferenced((block + 1) * table.blockEntries);
  }
  return false;
}

/** Let refcounts that are higher than the references stand: references may be lost. */
export function keepLeaks({ image, table, references }: Analysis): void {
  const { counts } = references;
  const max = refcountMax(image.layout);
  const keep = (cluster: number, refcount: number): void => {
    const missing = Math.min(refcount, max) - counts.get(cluster);
    if (missing > 0) counts.add(cluster, missing);
  };
  const end = counts.clusters;
  table.forEachUsed(end, keep);
  table.forEachUsedFrom(end, keep);
}

/**
 * Write the structures anew and switch to them. The references are then those of the new ones; the
 * old ones are free.
 *
 * @param refcountBits the width of the new refcounts
 * @throws {UnsupportedError | StorageError} nothing has changed
 */
export function rebuildRefcounts(
  analysis: Analysis,
  storage: WritableStorage,
  free: FreeClusters,
  refcountBits = analysis.image.layout.refcountBits,
): void {
  const { clusterSize, header } = analysis.image.layout;
  const plan = planStructures(analysis, free, (clusterSize * 8) / refcountBits);
  releaseOld(analysis);
  writeStructures(analysis, storage, plan, refcountBits);
  storage.sync();
  const writer = new HeaderWriter(storage, header.version);
  const refcountTable = { offset: plan.table * clusterSize, clusters: plan.tableClusters };
  writer.setRefcounts(refcountTable, refcountBits);
  storage.sync();
}

/** Find places until all that is used, these places too, has a block. */
function planStructures(
  { image, references }: Analysis,
  free: FreeClusters,
  blockEntries: number,
): Plan {
  const { clusterSize } = image.layout;
  const { counts } = references;
  const plan: Plan = { table: 0, tableClusters: 0, blocks: [] };
  for (let complete = false; !complete; ) {
    complete = true;
    let cluster = counts.nextReferenced(0);
    while (cluster !== Number.POSITIVE_INFINITY) {
      const block = Math.floor(cluster / blockEntries);
      if ((block + 1) * ENTRY_SIZE > REFCOUNT_TABLE_SIZE_MAX) {
        const reason = `its refcount table would exceed the limit of ${REFCOUNT_TABLE_SIZE_MAX} bytes`;
        throw new UnsupportedError(image.storage.path, reason);
      }
      while (plan.blocks.length <= block) plan.blocks.push(0);
      if (plan.blocks[block] === 0) {
        plan.blocks[block] = free.take(1);
        complete = false;
      }
      cluster = counts.nextReferenced((block + 1) * blockEntries);
    }
    const tableClusters = Math.ceil((plan.blocks.length * ENTRY_SIZE) / clusterSize);
    if (tableClusters > plan.tableClusters) {
      for (let index = 0; index < plan.tableClusters; index++) counts.add(plan.table + index, -1);
      plan.table = free.take(tableClusters);
      plan.tableClusters = tableClusters;
      complete = false;
    }
  }
  return plan;
}

/** The old structures are not referred to any more. */
function releaseOld({ image, table, references }: Analysis): void {
  const { counts } = references;
  const { header, clusterSize } = image.layout;
  const first = header.refcount_table_offset / clusterSize;
  const clusters = header.refcount_table_clusters;
  if (references.isInFile(header.refcount_table_offset, clusters * clusterSize)) {
    for (let index = 0; index < clusters; index++) counts.add(first + index, -1);
  }
  for (let block = 0; block < table.blocks; block++) {
    const offset = table.blockOffset(block);
    if (COUNTED_FAULTS.includes(table.faults[block] ?? 0) && offset !== 0)
      counts.add(offset / clusterSize, -1);
  }
}

function writeStructures(
  { image, references }: Analysis,
  storage: WritableStorage,
  plan: Plan,
  refcountBits: number,
): void {
  const { clusterSize } = image.layout;
  const blockEntries = (clusterSize * 8) / refcountBits;
  const max = 2 ** refcountBits - 1;
  const content = NativeBuffer.allocate(clusterSize);
  for (const [block, cluster] of plan.blocks.entries()) {
    if (cluster === 0) continue;
    content.bytes.fill(0);
    const start = block * blockEntries;
    const end = start + blockEntries;
    let used = references.counts.nextReferenced(start, end);
    for (; used < end; used = references.counts.nextReferenced(used + 1, end)) {
      const refcount = Math.min(references.counts.get(used), max);
      writeRefcount(content.view, used - start, refcountBits, refcount);
    }
    storage.writeAt(content, 0, clusterSize, cluster * clusterSize);
  }
  const entries = NativeBuffer.allocate(plan.tableClusters * clusterSize);
  for (const [block, cluster] of plan.blocks.entries()) {
    entries.view.setBigUint64(block * ENTRY_SIZE, BigInt(cluster * clusterSize));
  }
  storage.writeAt(entries, 0, entries.length, plan.table * clusterSize);
}
