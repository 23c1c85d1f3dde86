/** The COPIED flags of the active L1 and L2 tables: set exactly where the refcount is 1. */

import { hex } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { DataRuns } from "../../data-runs.ts";
import { COPIED_HI, entryHostOffset } from "../table-entry.ts";
import type { Findings } from "./findings.ts";
import { CLUSTER, L2EntryRules } from "./l2-table-walk.ts";
import { type RefcountTable, UNREADABLE } from "./refcount-table.ts";
import type { References } from "./references.ts";

const ENTRY_SIZE = 8;
/** The unit that a disk writes whole, bytes. */
const SECTOR_SIZE = 512;

/** What the flags are judged by. */
export interface FlagContext {
  readonly references: References;
  readonly table: RefcountTable;
}

/** Note the flags that contradict the refcounts on disk. */
export function checkCopiedFlags({ references, table }: FlagContext, findings: Findings): void {
  const { image, l2Tables } = references;
  const { clusterSize } = image.layout;
  const rules = new L2EntryRules(image.layout);
  const isWrong = (hi: number, lo: number): boolean => {
    const offset = entryHostOffset(hi, lo);
    const refcount = offset === Infinity ? 0 : table.get(Math.floor(offset / clusterSize));
    // What cannot be read was counted already.
    return refcount !== UNREADABLE && (refcount === 1) !== isCopied(hi);
  };
  forEachActiveL1Entry(references, (hi, lo, at) => {
    if (entryHostOffset(hi, lo) === 0 || !isWrong(hi, lo)) return;
    findings.add("copied", 1, () => `the L1 entry at ${hex(at)}: the COPIED flag is wrong`);
  });
  forEachActiveL2Table(references, (content, offset) => {
    // QEMU looks into none of those, whatever is known of what their entries refer to.
    if (table.get(Math.floor(offset / clusterSize)) === UNREADABLE) return;
    const weight = l2Tables.activeAt(offset);
    const { view } = content;
    for (let at = 0; at < view.byteLength; at += rules.entryBytes) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      if (rules.kindOf(hi, lo) !== CLUSTER.allocated) continue;
      const wrong = rules.dataFile ? !isCopied(hi) : isWrong(hi, lo);
      if (!wrong) continue;
      findings.add(
        "copied",
        weight,
        () => `the L2 entry at ${hex(offset + at)}: the COPIED flag is wrong`,
      );
    }
  });
}

/**
 * clear: where there are several references. set: where there is one, and the refcount says so.
 */
export type FlagChange = "clear" | "set";

/**
 * Correct flags one way, in tables that lie over no other metadata.
 *
 * @returns how many were changed
 */
export function correctCopiedFlags(
  { references, table }: FlagContext,
  storage: WritableStorage,
  change: FlagChange,
): number {
  const { image, counts } = references;
  const { clusterSize } = image.layout;
  const rules = new L2EntryRules(image.layout);
  let changed = 0;
  const shouldChange = (hi: number, lo: number, isData: boolean): boolean => {
    if (isCopied(hi) !== (change === "clear")) return false;
    if (isData && rules.dataFile) return change === "set";
    const offset = entryHostOffset(hi, lo);
    const cluster = Math.floor(offset / clusterSize);
    if (offset % clusterSize !== 0 || !references.isInFile(offset, clusterSize)) return false;
    if (change === "clear") return counts.get(cluster) > 1;
    return counts.get(cluster) === 1 && table.get(cluster) === 1;
  };

  const word = NativeBuffer.allocate(ENTRY_SIZE);
  forEachActiveL1Entry(references, (hi, lo, at) => {
    if (entryHostOffset(hi, lo) === 0 || !shouldChange(hi, lo, false)) return;
    if (!references.areL1EntriesAlone()) return;
    word.view.setUint32(0, (hi ^ COPIED_HI) >>> 0);
    word.view.setUint32(4, lo);
    storage.writeAt(word, 0, ENTRY_SIZE, at);
    changed++;
  });
  forEachActiveL2Table(references, (content, offset) => {
    if (!references.areL2EntriesAlone(offset)) return;
    const { view } = content;
    let first = view.byteLength;
    let end = 0;
    for (let at = 0; at < view.byteLength; at += rules.entryBytes) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      if (rules.kindOf(hi, lo) !== CLUSTER.allocated || !shouldChange(hi, lo, true)) continue;
      view.setUint32(at, (hi ^ COPIED_HI) >>> 0);
      changed++;
      first = Math.min(first, at - (at % SECTOR_SIZE));
      end = at - (at % SECTOR_SIZE) + SECTOR_SIZE;
    }
    if (end > first) storage.writeAt(content, first, end - first, offset + first);
  });
  return changed;
}

function isCopied(hi: number): boolean {
  return (hi & COPIED_HI) !== 0;
}

function forEachActiveL1Entry(
  { image }: References,
  visit: (hi: number, lo: number, at: number) => void,
): void {
  const { storage, layout, length } = image;
  const { l1_table_offset, l1_size } = layout.header;
  const end = Math.min(l1_table_offset + l1_size * ENTRY_SIZE, length);
  new DataRuns(storage, length).forEachEntry(l1_table_offset, end, visit);
}

/** Read the active L2 tables that hold anything, each once. */
function forEachActiveL2Table(
  { image, l2Tables }: References,
  visit: (content: NativeBuffer, offset: number) => void,
): void {
  const { storage, layout, length } = image;
  const content = NativeBuffer.allocate(layout.clusterSize);
  const runs = new DataRuns(storage, length);
  for (const offset of l2Tables.inOrder()) {
    const end = offset + layout.clusterSize;
    // Offset 0 is named by entries that have flags only: they lead nowhere.
    if (offset === 0 || l2Tables.activeAt(offset) === 0 || runs.nextData(offset, end) === end) {
      continue;
    }
    storage.readAt(content, 0, content.length, offset);
    visit(content, offset);
  }
}
