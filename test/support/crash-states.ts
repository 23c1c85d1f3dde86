/**
 * What files may contain after a crash, made from a log of what was done to them.
 *
 * The model of the host. What a completed sync covered is there. Of everything later, the disk may
 * hold any part in sectors of 512 bytes: the operations are cut at multiples of a unit (512 bytes or
 * more), and each unit has its own fate. Lengths have theirs: a length may be lost, and all data behind
 * it then, or be there without the data; what was appended by writing makes the file longer if it
 * landed. Files that belong together are independent. This allows more than a journalling file system
 * does, which keeps some order between lengths and data.
 *
 * "any-order" goes further than any page cache, which writes out one version of a sector: there, of
 * the operations on a sector, any subset lands, in any order. It stands for hosts that pass writes on
 * by byte ranges.
 */

import type { Random } from "./random.ts";
import type { SparseFile } from "./recording-sparse-file.ts";
import type { LoggedOperation, RecordingLog } from "./recording-storage.ts";

/** How the fates of units are drawn. */
export const STRATEGIES = [
  /** Each unit shows some point of its own time. */
  "torn",
  /** As torn, but most units are up to date. */
  "mostly-landed",
  /** As torn, but most units are as they were at the sync. */
  "mostly-lost",
  /** Operations land or not. */
  "operations",
  /** All but one operation, or a few in a row. */
  "one-lost",
  /** One operation, or a few in a row. */
  "one-landed",
  /** What lies below some offset landed, or what lies above it. */
  "by-offset",
  /** Small writes, which are metadata mostly, landed and large ones did not; or the reverse. */
  "by-size",
  /** Each unit: any subset of the operations on it, in any order. */
  "any-order",
] as const;
export type Strategy = (typeof STRATEGIES)[number];

interface Checkpoint {
  /** Operations of the log that are in `content`: all before a sync of this file. */
  readonly position: number;
  /** Where the log stood when the sync was done. */
  readonly holdsFrom: number;
  readonly content: SparseFile;
}

/** An operation that may or may not have landed, with its number in the log. */
interface Pending {
  readonly position: number;
  readonly operation: LoggedOperation;
}

/** What became of the pending operations. */
interface Fate {
  /** Which of the operations that touch the unit at `offset` landed there, in their order. */
  landing(touching: readonly number[], offset: number): readonly number[];
  /** Whether a change of the length landed. */
  lengthLanded(number: number): boolean;
}

const UNITS = [512, 512, 512, 4096, 65536] as const;

/** States with more units than this are made of larger ones, to bound the work. */
const UNITS_MAX = 65536;

export class CrashStates {
  readonly #log: RecordingLog;
  readonly #checkpoints: readonly (readonly Checkpoint[])[];

  /** @param initial the durable files before the first operation of the log */
  constructor(initial: readonly SparseFile[], log: RecordingLog) {
    this.#log = log;
    this.#checkpoints = initial.map((file, index) => checkpointsOf(file, index, log));
  }

  /** The files after exactly the first `position` operations: the host survived, the program did not. */
  prefix(position: number): SparseFile[] {
    return this.#checkpoints.map((_, file) => {
      const { content, pending } = this.#pendingOf(file, position);
      for (const { operation } of pending) applyWhole(content, operation);
      return content;
    });
  }

  /** A random state of the files when the host stopped after `position` operations. */
  random(position: number, strategy: Strategy, random: Random): SparseFile[] {
    return this.#checkpoints.map((_, file) => {
      const { content, pending } = this.#pendingOf(file, position);
      land(content, pending, strategy, random);
      return content;
    });
  }

  /** What is durable of one file at a position, and what came later. */
  #pendingOf(file: number, position: number): { content: SparseFile; pending: Pending[] } {
    const checkpoint = this.#checkpoints[file]?.findLast((point) => point.holdsFrom <= position);
    if (checkpoint === undefined) throw new RangeError(`no file ${file}`);
    const pending: Pending[] = [];
    for (let at = checkpoint.position; at < position; at++) {
      const operation = this.#log.operations[at];
      if (operation?.file === file && operation.kind !== "sync") {
        pending.push({ position: at, operation });
      }
    }
    return { content: checkpoint.content.clone(), pending };
  }
}

function checkpointsOf(initial: SparseFile, file: number, log: RecordingLog): Checkpoint[] {
  const checkpoints: Checkpoint[] = [{ position: 0, holdsFrom: 0, content: initial.clone() }];
  const durable = initial.clone();
  let position = 0;
  log.operations.forEach((sync, at) => {
    if (sync.file !== file || sync.kind !== "sync") return;
    const { covers = at } = sync;
    // Several may be under way at once: one that has covered more already counts.
    for (; position < covers; position++) {
      const operation = log.operations[position];
      if (operation?.file === file) applyWhole(durable, operation);
    }
    checkpoints.push({ position, holdsFrom: at + 1, content: durable.clone() });
  });
  return checkpoints;
}

function applyWhole(content: SparseFile, operation: LoggedOperation): void {
  if (operation.kind === "write") content.write(operation.offset, operation.data);
  else if (operation.kind === "zero") content.zero(operation.offset, operation.length);
  else if (operation.kind === "length") content.setLength(operation.length);
}

/** The bytes that an operation changes: [first, behind the last). */
type Extent = readonly [first: number, end: number];

/** Cutting a file zeroes what was there. */
function extentOf(operation: LoggedOperation, lengthBefore: number): Extent {
  switch (operation.kind) {
    case "write":
      return [operation.offset, operation.offset + operation.data.length];
    case "zero":
      return [operation.offset, operation.offset + operation.length];
    case "length":
      return [operation.length, Math.max(operation.length, lengthBefore)];
    case "sync":
      return [0, 0];
  }
}

function land(
  content: SparseFile,
  pending: readonly Pending[],
  strategy: Strategy,
  random: Random,
): void {
  if (pending.length === 0) return;
  const durableLength = content.length;
  /** The length before each operation, and in the end. */
  const lengths = [durableLength];
  const extents: Extent[] = [];
  let bytes = 0;
  for (const { operation } of pending) {
    const before = lengths.at(-1) ?? 0;
    const extent = extentOf(operation, before);
    extents.push(extent);
    bytes += extent[1] - extent[0];
    lengths.push(operation.kind === "length" ? operation.length : Math.max(before, extent[1]));
  }
  let unit: number = random.pick(UNITS);
  while (bytes / unit > UNITS_MAX) unit *= 2;

  const fate = FATES[strategy](pending, extents, random);
  /** Behind the last byte of each operation that landed; 0: none did. */
  const landedEnds = new Array<number>(pending.length).fill(0);
  for (const [key, touching] of unitsOf(extents, unit)) {
    for (const number of fate.landing(touching, key * unit)) {
      const operation = pending[number]?.operation;
      const [first, end] = extents[number] ?? [0, 0];
      const from = Math.max(first, key * unit);
      const to = Math.min(end, (key + 1) * unit);
      if (operation?.kind === "write") {
        content.write(from, operation.data.subarray(from - first, to - first));
      } else {
        content.zero(from, to - from);
      }
      landedEnds[number] = Math.max(landedEnds[number] ?? 0, to);
    }
  }

  if (random.below(3) === 0) {
    // The length of some point in time: what landed behind it is lost with it.
    content.setLength(lengths[random.below(lengths.length)] ?? durableLength);
    return;
  }
  let length = durableLength;
  pending.forEach(({ operation }, number) => {
    if (operation.kind === "length") {
      if (fate.lengthLanded(number)) length = operation.length;
    } else {
      const isAppended = (lengths[number + 1] ?? 0) > (lengths[number] ?? 0);
      if (isAppended) length = Math.max(length, landedEnds[number] ?? 0);
    }
  });
  content.setLength(length);
}

/** For each unit that is touched, the numbers of the operations that touch it. */
function unitsOf(extents: readonly Extent[], unit: number): Map<number, number[]> {
  const units = new Map<number, number[]>();
  extents.forEach(([first, end], number) => {
    for (let key = Math.floor(first / unit); key * unit < end; key++) {
      const list = units.get(key);
      if (list === undefined) units.set(key, [number]);
      else list.push(number);
    }
  });
  return units;
}

type DrawFate = (pending: readonly Pending[], extents: readonly Extent[], random: Random) => Fate;

const FATES: Readonly<Record<Strategy, DrawFate>> = {
  torn: (_pending, _extents, random) => tornWith(random, 0, 0),
  "mostly-landed": (_pending, _extents, random) => tornWith(random, 0.9, 0),
  "mostly-lost": (_pending, _extents, random) => tornWith(random, 0, 0.9),
  operations: (pending, _extents, random) => {
    const share = random.pick([0.2, 0.5, 0.8]);
    return ofOperations(pending.map(() => chance(random, share)));
  },
  "one-lost": (pending, _extents, random) => {
    const isChosen = fewInARow(pending.length, random);
    return ofOperations(pending.map((_, number) => !isChosen(number)));
  },
  "one-landed": (pending, _extents, random) => {
    const isChosen = fewInARow(pending.length, random);
    return ofOperations(pending.map((_, number) => isChosen(number)));
  },
  "by-offset": (_pending, extents, random) => {
    const [first, end] = extents[random.below(extents.length)] ?? [0, 0];
    const border = random.between(first, end);
    const belowLands = chance(random, 0.5);
    return {
      landing: (touching, offset) => (offset < border === belowLands ? touching : []),
      lengthLanded: () => !belowLands,
    };
  },
  "by-size": (_pending, extents, random) => {
    const border = random.pick([9, 64, 512, 4096, 65536]);
    const smallLands = chance(random, 0.7);
    return ofOperations(extents.map(([first, end]) => end - first < border === smallLands));
  },
  "any-order": (_pending, _extents, random) => ({
    landing: (touching) => shuffled(touching, random).filter(() => chance(random, 0.7)),
    lengthLanded: () => chance(random, 0.5),
  }),
};

/** Each unit at some point of its own time; up to date or as it was at the sync with these chances. */
function tornWith(random: Random, landed: number, lost: number): Fate {
  return {
    landing: (touching) => {
      if (chance(random, landed)) return touching;
      if (chance(random, lost)) return [];
      return touching.slice(0, random.between(0, touching.length));
    },
    lengthLanded: () => chance(random, 0.5),
  };
}

/** A unit is written out whole: with an operation, what came to it before lands too. */
function ofOperations(landed: readonly boolean[]): Fate {
  return {
    landing: (touching) => {
      const last = touching.findLastIndex((number) => landed[number] === true);
      return touching.slice(0, last + 1);
    },
    lengthLanded: (number) => landed[number] === true,
  };
}

function fewInARow(count: number, random: Random): (number: number) => boolean {
  const first = random.below(count);
  const length = random.pick([1, 1, 2, 4]);
  return (number) => number >= first && number < first + length;
}

function chance(random: Random, probability: number): boolean {
  return random.u32() < probability * 2 ** 32;
}

function shuffled(numbers: readonly number[], random: Random): number[] {
  const list = [...numbers];
  for (let last = list.length - 1; last > 0; last--) {
    const other = random.between(0, last);
    const value = list[last];
    const otherValue = list[other];
    if (value !== undefined && otherValue !== undefined) {
      list[last] = otherValue;
      list[other] = value;
    }
  }
  return list;
}
