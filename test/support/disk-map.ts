// Block status maps in the JSON form of `qemu-img map`, brought to a form that can be compared.

import { asArray, asRecord, booleanIn, numberIn } from "./json.ts";

/** One run of a map: the fields that qemu-img 7.2 prints. */
export interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly offset: number | undefined;
}

function parseEntry(value: unknown): MapEntry {
  const record = asRecord(value);
  return {
    start: numberIn(record, "start"),
    length: numberIn(record, "length"),
    depth: numberIn(record, "depth"),
    present: booleanIn(record, "present"),
    zero: booleanIn(record, "zero"),
    data: booleanIn(record, "data"),
    offset: record["offset"] === undefined ? undefined : numberIn(record, "offset"),
  };
}

function continues(before: MapEntry, entry: MapEntry): boolean {
  const offsetContinues =
    before.offset === undefined
      ? entry.offset === undefined
      : entry.offset === before.offset + before.length;
  return (
    offsetContinues &&
    before.start + before.length === entry.start &&
    before.depth === entry.depth &&
    before.present === entry.present &&
    before.zero === entry.zero &&
    before.data === entry.data
  );
}

/** The entries of a map, with neighbours joined that differ in newer fields only. */
export function parseMap(json: unknown): MapEntry[] {
  const entries: MapEntry[] = [];
  for (const entry of asArray(json).map(parseEntry)) {
    const before = entries.at(-1);
    if (before !== undefined && continues(before, entry)) {
      entries[entries.length - 1] = { ...before, length: before.length + entry.length };
    } else {
      entries.push(entry);
    }
  }
  return entries;
}

/** The runs of a map, each "zero" or "data", in the form "start+length zero". */
export function zeroRuns(json: unknown): string[] {
  const runs: { start: number; length: number; zero: boolean }[] = [];
  for (const { start, length, zero } of parseMap(json)) {
    const before = runs.at(-1);
    if (before !== undefined && before.zero === zero) {
      before.length += length;
    } else if (length > 0) {
      runs.push({ start, length, zero });
    }
  }
  return runs.map(({ start, length, zero }) => `${start}+${length} ${zero ? "zero" : "data"}`);
}
