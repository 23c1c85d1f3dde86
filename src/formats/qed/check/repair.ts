/**
 * Repairing a QED image, as QEMU does it: entries that cannot be right become 0, so that the backing file or
 * zeros show there. Each step is harmless if it is the last one, and durable before the next:
 *
 *     1. autoclear bits that nobody here knows are cleared
 *     2. invalid entries are zeroed: each of them alone was as bad before
 *     3. leaked clusters at the end are cut off the file: no entry, zeroed or not, reaches there
 *     4. the need-check bit is cleared, if nothing is wrong any more
 *
 * Leaked clusters before others stay: no table could say that they are free. Where clusters are referred
 * to twice, nobody can tell which entry is right, and which cluster the other one has lost: they stay as they
 * are, and no leaked cluster is cut off.
 */

import type { WritableStorage } from "../../../storage/storage.ts";
import type { RepairMode, RepairOutcome, Report } from "../../check-result.ts";
import { LimitedReport } from "../../limited-report.ts";
import { FEATURE } from "../header.ts";
import { readStoredHeader, writeFeatures } from "../stored-header.ts";
import { type Analysis, analyse } from "./analysis.ts";
import { type CheckedQed, TableWalk } from "./table-walk.ts";
import { ZeroedEntries } from "./zeroed-entries.ts";

const silent: Report = () => undefined;

/**
 * Check an image and repair it.
 *
 * @param mode leaks: what cannot be right stays as it is, and so do leaks then
 * @param report takes the findings before the repair, and what is left
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function repairQed(
  storage: WritableStorage,
  mode: RepairMode,
  report: Report,
): RepairOutcome {
  const first = analyse(imageOf(storage), report);
  let last = first;
  if (mode === "all" && first.invalid > 0) {
    clearAutoclear(storage, first.image);
    zeroInvalidEntries(storage, first.image);
    last = analyse(imageOf(storage), silent);
  }
  const corruptionsFixed = first.result.corruptions - last.result.corruptions;
  const isSound = last.result.corruptions === 0;
  const leaksFixed = isSound ? cutLeaks(storage, last) : 0;
  const result = { ...last.result, leaks: last.result.leaks - leaksFixed };
  if (isSound) clearNeedCheck(storage, last.image);
  reportRest({ result, invalid: last.invalid }, report);
  return { leaksFixed, corruptionsFixed, result };
}

function imageOf(storage: WritableStorage): CheckedQed {
  const length = storage.currentLength();
  return { storage, header: readStoredHeader(storage, length), length };
}

function zeroInvalidEntries(storage: WritableStorage, image: CheckedQed): void {
  const entries = new ZeroedEntries(storage);
  const walk = new TableWalk(image, {
    report: new LimitedReport(silent),
    onInvalid: (offset) => entries.add(offset),
  });
  walk.run();
  entries.end();
  storage.sync();
}

/** Returns how many clusters were cut off; a block device keeps its length, and its leaks. */
function cutLeaks(storage: WritableStorage, { image, usedEnd, leaksAtEnd }: Analysis): number {
  if (leaksAtEnd === 0 || !storage.resizable) return 0;
  clearAutoclear(storage, image);
  storage.setLength(usedEnd);
  storage.sync();
  return leaksAtEnd;
}

function clearAutoclear(storage: WritableStorage, { header }: CheckedQed): void {
  if (header.autoclear_features === 0n) return;
  writeFeatures(storage, header, header.features);
  storage.sync();
}

function clearNeedCheck(storage: WritableStorage, { header }: CheckedQed): void {
  if ((header.features & FEATURE.needCheck) === 0n) return;
  // What was found to be right may have been in the host's cache only.
  storage.sync();
  writeFeatures(storage, header, header.features & ~FEATURE.needCheck);
  storage.sync();
}

function reportRest(
  { result, invalid }: Pick<Analysis, "result" | "invalid">,
  report: Report,
): void {
  const { corruptions, leaks } = result;
  if (invalid > 0) report(`damaged entries stay, ${invalid} of them: -r all repairs them`);
  const shared = corruptions - invalid;
  if (shared > 0) report(`${shared} errors stay: nobody can tell whose the clusters are`);
  if (leaks === 0) return;
  const reason =
    corruptions > 0
      ? "they may be what damaged entries have lost"
      : "QED cannot say that clusters are free, and only a file can be cut at its end";
  report(`${leaks} leaked clusters stay: ${reason}`);
}
