/**
 * Repairing a qcow2 image. The order of the writes keeps every state in between at least as good as the
 * one before (a refcount is never too low, a COPIED flag never wrongly set, for longer than it was):
 *
 *     1. the dirty bit: whoever finds the image half-repaired goes on with it (version 3)
 *     2. L2 entries that can be corrected
 *     3. COPIED flags of shared clusters cleared
 *     4. refcounts raised; or new refcount structures written, then switched to
 *     5. a new snapshot table written, then switched to
 *     6. refcounts lowered
 *     7. COPIED flags of unshared clusters set
 *     8. the dirty and the corrupt bit cleared, if nothing is wrong any more
 *
 * with a sync after each. While entries are damaged whose meaning is lost, 6 and 7 are left out: what
 * looks leaked may belong to them.
 */

import { CorruptionError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { CheckResult, RepairMode, RepairOutcome, Report } from "../../check-result.ts";
import type { Qcow2Layout } from "../layout.ts";
import { type Analysis, analyse } from "./analysis.ts";
import { type CheckLayout, checkedImage, readCheckLayout } from "./check-layout.ts";
import { correctCopiedFlags } from "./copied-flags.ts";
import { FreeClusters, type RefcountOrigin } from "./free-clusters.ts";
import { keepLeaks, needsRebuild, rebuildRefcounts } from "./rebuild-refcounts.ts";
import { BLOCK_FAULT } from "./refcount-table.ts";
import { RepairMark } from "./repair-mark.ts";
import { NewSnapshotTable } from "./rewrite-snapshots.ts";
import { punchLeaks, updateRefcounts } from "./update-refcounts.ts";
import { dropUnalignedClusters } from "./zero-entries.ts";

/** Some findings stay whatever is done. */
const ROUNDS_MAX = 3;

const silent: Report = () => undefined;

/**
 * Check an image and repair it, as `qemu-img check -r`.
 *
 * @param report takes the findings before the repair, and those that are left
 * @throws {CorruptionError} leaks are to be repaired, but the refcounts cannot be relied on
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function repairQcow2(
  storage: WritableStorage,
  mode: RepairMode,
  report: Report,
): RepairOutcome {
  return new Repair(storage, mode, report).run(readCheckLayout(storage));
}

/**
 * As `check -r all`: for images that were not closed cleanly, before they are written to. The header
 * may be another one afterwards: the layout has to be read again.
 *
 * @throws {CorruptionError} something is wrong that cannot be repaired
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function repairRefcounts(storage: WritableStorage, layout: Qcow2Layout): CheckResult {
  const { result } = new Repair(storage, "all", silent).run(layout);
  if (result.corruptions > 0 || result.checkErrors > 0) {
    const reason = `is damaged beyond what a repair can do (${result.corruptions} errors are left; check tells more)`;
    throw new CorruptionError(storage.path, reason);
  }
  return result;
}

/**
 * As `check -r leaks`: gives clusters back that a writer had reserved when it was stopped.
 *
 * @throws {CorruptionError} the refcounts cannot be relied on
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function reclaimLeaks(storage: WritableStorage, layout: Qcow2Layout): CheckResult {
  return new Repair(storage, "leaks", silent).run(layout).result;
}

class Repair {
  readonly #storage: WritableStorage;
  readonly #mode: RepairMode;
  readonly #report: Report;
  #leaksFixed = 0;
  #corruptionsFixed = 0;
  #refcountOrigin: RefcountOrigin = "stored";

  constructor(storage: WritableStorage, mode: RepairMode, report: Report) {
    this.#storage = storage;
    this.#mode = mode;
    this.#report = report;
  }

  run(layout: CheckLayout): RepairOutcome {
    const first = analyse(checkedImage(this.#storage, layout), {
      mode: this.#mode === "all" ? "tolerant" : "strict",
      report: this.#report,
    });
    if (this.#mode === "leaks" && !areRefcountsReliable(first)) {
      const reason = "its refcounts cannot be relied on: leaks can be repaired with -r all only";
      throw new CorruptionError(this.#storage.path, reason);
    }
    const mark = new RepairMark(this.#storage, layout.header);
    let last = first;
    if (this.#isWorthwhile(first)) {
      mark.set();
      try {
        last = this.#mode === "all" ? this.#repairAll(first) : this.#repairLeaks(first);
      } catch (error) {
        // What was done is no worse than what was there, so its dirty bit need not stay.
        mark.abandon();
        throw error;
      }
    }
    const overflows = first.findings.count("overflow") - last.findings.count("overflow");
    this.#corruptionsFixed += Math.max(0, overflows);
    const { result } = last;
    const isClean = result.corruptions === 0 && result.checkErrors === 0;
    mark.end(isClean ? "clean" : "damaged");
    return { leaksFixed: this.#leaksFixed, corruptionsFixed: this.#corruptionsFixed, result };
  }

  /** Whether there is anything that this mode repairs. */
  #isWorthwhile(analysis: Analysis): boolean {
    const { findings } = analysis;
    if (findings.count("copied") > 0) return true;
    if (hasLeaks(analysis) && isSound(analysis)) return true;
    if (this.#mode === "leaks") return false;
    if (needsRebuild(analysis)) return true;
    return findings.count("refcount", "preallocated", "snapshot", "unreadable") > 0;
  }

  #repairLeaks(first: Analysis): Analysis {
    this.#dropLeaks(first);
    let analysis = this.#again();
    // Flags are corrected only where every refcount is right.
    if (analysis.findings.corruptions() === analysis.findings.count("copied")) {
      this.#corruptionsFixed += correctCopiedFlags(analysis, this.#storage, "clear");
      this.#storage.sync();
      this.#setCopiedFlags(analysis);
      analysis = this.#again();
    }
    return this.#described(analysis);
  }

  #repairAll(first: Analysis): Analysis {
    let analysis = first;
    // What a repair changes may show more: clusters that the file did not reach before, for one.
    for (let round = 0; round < ROUNDS_MAX && this.#isWorthwhile(analysis); round++) {
      analysis = this.#repairOnce(analysis);
    }
    return this.#described(analysis);
  }

  #repairOnce(first: Analysis): Analysis {
    let analysis = first;
    if (analysis.findings.count("preallocated") > 0) {
      this.#corruptionsFixed += dropUnalignedClusters(analysis, this.#storage);
      this.#storage.sync();
      analysis = this.#again("tolerant");
    }
    const cleared = correctCopiedFlags(analysis, this.#storage, "clear");
    if (cleared > 0) this.#storage.sync();
    this.#corruptionsFixed += cleared;
    this.#repairStructures(analysis);
    analysis = this.#again();
    this.#dropLeaks(analysis);
    this.#setCopiedFlags(analysis);
    return this.#again();
  }

  /** Raise refcounts, in place or in new structures; and have a proper snapshot table. */
  #repairStructures(analysis: Analysis): void {
    const { findings } = analysis;
    const free = new FreeClusters(analysis, this.#storage, this.#refcountOrigin);
    const inSnapshots = findings.count("snapshot");
    const snapshots = inSnapshots > 0 ? new NewSnapshotTable(analysis, free) : undefined;
    if (needsRebuild(analysis)) {
      this.#corruptionsFixed += findings.count("structure", "refcount");
      if (isSound(analysis)) this.#leaksFixed += findings.count("leak");
      else keepLeaks(analysis);
      rebuildRefcounts(analysis, this.#storage, free);
      this.#refcountOrigin = "rebuilt";
    } else {
      updateRefcounts(analysis, this.#storage, "raise");
      this.#corruptionsFixed += findings.count("refcount");
      this.#storage.sync();
    }
    if (snapshots === undefined) return;
    snapshots.write(this.#storage);
    this.#storage.sync();
    snapshots.enter(this.#storage);
    this.#storage.sync();
    this.#corruptionsFixed += inSnapshots;
  }

  #dropLeaks(analysis: Analysis): void {
    if (!hasLeaks(analysis) || !isSound(analysis)) return;
    punchLeaks(analysis, this.#storage);
    this.#storage.sync();
    this.#leaksFixed += updateRefcounts(analysis, this.#storage, "lower");
    this.#storage.sync();
  }

  #setCopiedFlags(analysis: Analysis): void {
    if (!isSound(analysis)) return;
    this.#corruptionsFixed += correctCopiedFlags(analysis, this.#storage, "set");
    this.#storage.sync();
  }

  #again(mode: "strict" | "tolerant" = "strict"): Analysis {
    const image = checkedImage(this.#storage, readCheckLayout(this.#storage));
    return analyse(image, { mode, report: silent });
  }

  /** What is left is described by one more check, only if there is anything. */
  #described(analysis: Analysis): Analysis {
    const { result, image } = analysis;
    if (result.corruptions + result.leaks + result.checkErrors === 0) return analysis;
    return analyse(image, { mode: "strict", report: this.#report });
  }
}

function hasLeaks({ findings, usedPastEnd }: Analysis): boolean {
  return findings.count("leak") > 0 || usedPastEnd > 0;
}

/** Whether all references are known, so that what has none is really free. */
function isSound({ findings }: Analysis): boolean {
  return findings.count("reference", "preallocated", "unreadable") === 0;
}

/** Blocks that are left out; the others are right. */
const TOLERABLE_FAULTS: readonly number[] = [
  BLOCK_FAULT.none,
  BLOCK_FAULT.outside,
  BLOCK_FAULT.saturated,
];

/** As QEMU: refcounts are where the table says, and none says of a cluster in use that it is free. */
function areRefcountsReliable({ findings, table, references }: Analysis): boolean {
  if (!table.faults.every((fault) => TOLERABLE_FAULTS.includes(fault))) return false;
  if (findings.count("refcount") === 0) return true;
  let cluster = references.counts.nextReferenced(0);
  for (; cluster !== Infinity; cluster = references.counts.nextReferenced(cluster + 1)) {
    if (table.get(cluster) === 0) return false;
  }
  return true;
}
