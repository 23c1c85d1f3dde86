/**
 * What a disk must and may contain, in the course of a recorded workload, sector by sector.
 *
 * Positions count operations of the recording log, so that a crash after `position` operations can be
 * held against what the disk's user had been promised by then.
 */

import { applyStep, changeOf, type DiskStep } from "./crash-workload.ts";
import { PAGE_SIZE, type SparseFile } from "./recording-sparse-file.ts";

export const SECTOR_SIZE = 512;

/** A change of the disk: where the log stood when it began and when it was acknowledged. */
interface Change {
  readonly start: number;
  readonly end: number;
  /** Sectors in full, after the change; the first sector's offset. */
  readonly offset: number;
  readonly content: Buffer;
  /** Of the disk, before and after. */
  readonly sizes: readonly [number, number];
}

/** A completed flush and what the disk contained then. */
interface Flush {
  readonly end: number;
  readonly content: SparseFile;
  /** Changes that came before it. */
  readonly changes: number;
}

/** What each sector may contain. */
export interface Allowed {
  /** Of sectors that `versions` does not name, this; behind its end, zeros. */
  readonly base: SparseFile;
  /** What size the disk may have. */
  readonly sizes: readonly number[];
  /** By sector number: any of these. */
  readonly versions: ReadonlyMap<number, readonly Uint8Array[]>;
  /** A sector may also be mixed of its versions, byte by byte. */
  readonly mixed: boolean;
}

export class DiskModel {
  /** What the disk contains now. */
  readonly content: SparseFile;
  readonly #changes: Change[] = [];
  readonly #flushes: Flush[];

  /** @param initial durable from the start */
  constructor(initial: SparseFile) {
    this.content = initial.clone();
    this.#flushes = [{ end: 0, content: initial.clone(), changes: 0 }];
  }

  /**
   * Note a step that was acknowledged, and where the log stood before and after it.
   */
  done(step: DiskStep, { start, end }: { start: number; end: number }): void {
    const change = changeOf(step, this.content);
    const sizeBefore = this.content.length;
    applyStep(step, this.content);
    if (step.kind === "flush") this.flushed(end);
    if (change === undefined) return;
    const { offset, bytes } = change;
    const length = typeof bytes === "number" ? bytes : bytes.length;
    const sizeAfter = this.content.length;
    const first = Math.floor(offset / SECTOR_SIZE) * SECTOR_SIZE;
    const last = Math.min(
      Math.ceil((offset + length) / SECTOR_SIZE) * SECTOR_SIZE,
      Math.max(sizeBefore, sizeAfter),
    );
    const content = this.content.bytesAt(first, last - first);
    this.#changes.push({ start, end, offset: first, content, sizes: [sizeBefore, sizeAfter] });
  }

  /** Note that a flush was acknowledged when the log stood at `end`. */
  flushed(end: number): void {
    const content = this.content.clone();
    this.#flushes.push({ end, content, changes: this.#changes.length });
  }

  /** After exactly `position` operations: what was acknowledged is there, all of it. */
  allowedAfterKill(position: number): Allowed {
    const base = this.#flushBefore(position).content.clone();
    const versions = new Map<number, Uint8Array[]>();
    let sizes: readonly number[] = [base.length];
    for (const { start, end, ...change } of this.#changesSinceFlush(position)) {
      if (end <= position) {
        base.write(change.offset, change.content);
        base.setLength(change.sizes[1]);
        sizes = [base.length];
      } else {
        this.#addVersions(versions, base, change);
        sizes = change.sizes;
      }
    }
    return { base, sizes, versions, mixed: false };
  }

  /** After a power cut at `position`: what was flushed is there, or what was written there later. */
  allowedAfterPowerCut(position: number, { mixed }: { mixed: boolean }): Allowed {
    const base = this.#flushBefore(position).content;
    const versions = new Map<number, Uint8Array[]>();
    const sizes = [base.length];
    for (const change of this.#changesSinceFlush(position)) {
      this.#addVersions(versions, base, change);
      sizes.push(change.sizes[1]);
    }
    return { base, sizes, versions, mixed };
  }

  #flushBefore(position: number): Flush {
    const flush = this.#flushes.findLast(({ end }) => end <= position);
    if (flush === undefined) throw new RangeError(`position ${position}`);
    return flush;
  }

  #changesSinceFlush(position: number): Change[] {
    return this.#changes
      .slice(this.#flushBefore(position).changes)
      .filter(({ start, end }) => start < position || end <= position);
  }

  #addVersions(
    versions: Map<number, Uint8Array[]>,
    base: SparseFile,
    { offset, content }: Pick<Change, "offset" | "content">,
  ): void {
    for (let at = 0; at < content.length; at += SECTOR_SIZE) {
      const sector = (offset + at) / SECTOR_SIZE;
      const bytes = content.subarray(at, at + SECTOR_SIZE);
      const list = versions.get(sector);
      if (list === undefined) {
        versions.set(sector, [base.bytesAt(offset + at, bytes.length), bytes]);
      } else {
        list.push(bytes);
      }
    }
  }
}

/** The first thing that is wrong with a disk, in words; undefined if all is as allowed. */
export function findForbidden(disk: SparseFile, allowed: Allowed): string | undefined {
  if (!allowed.sizes.includes(disk.length)) {
    return `the disk has ${disk.length} bytes, not ${allowed.sizes.join(" or ")}`;
  }
  const touched = new Set<number>();
  for (const sector of allowed.versions.keys()) {
    touched.add(Math.floor((sector * SECTOR_SIZE) / PAGE_SIZE));
  }
  const pages = new Set([...disk.pageIndexes(), ...allowed.base.pageIndexes(), ...touched]);
  for (const index of [...pages].sort((a, b) => a - b)) {
    const offset = index * PAGE_SIZE;
    const page = disk.pageAt(offset) ?? ZERO_PAGE;
    const wanted = allowed.base.pageAt(offset) ?? ZERO_PAGE;
    if (!touched.has(index) && Buffer.compare(page, wanted) === 0) continue;
    const end = Math.min(PAGE_SIZE, disk.length - offset);
    for (let at = 0; at < end; at += SECTOR_SIZE) {
      const actual = page.subarray(at, Math.min(at + SECTOR_SIZE, end));
      const base = wanted.subarray(at, at + actual.length);
      const versions = allowed.versions.get((offset + at) / SECTOR_SIZE) ?? [base];
      if (!isAllowed(actual, versions, allowed.mixed)) {
        return describeSector(offset + at, actual, versions);
      }
    }
  }
  return undefined;
}

const ZERO_PAGE = new Uint8Array(PAGE_SIZE);

function isAllowed(actual: Uint8Array, versions: readonly Uint8Array[], mixed: boolean): boolean {
  if (versions.some((version) => Buffer.compare(actual, version) === 0)) return true;
  return mixed && versions.length > 2 && isMixed(actual, versions);
}

/** Whether each byte is that of some version. */
function isMixed(actual: Uint8Array, versions: readonly Uint8Array[]): boolean {
  return actual.every((byte, index) => versions.some((version) => version[index] === byte));
}

function describeSector(
  offset: number,
  actual: Uint8Array,
  versions: readonly Uint8Array[],
): string {
  const at = firstDifference(actual, versions);
  const what = isMixed(actual, versions) ? "a mixture of what was there" : "what was never there";
  return [
    `sector at 0x${offset.toString(16)} has ${what}; from byte ${at} on: ${hexOf(actual, at)}`,
    ...versions.map((version, index) => `  allowed ${index}: ${hexOf(version, at)}`),
  ].join("\n");
}

/** Where `actual` departs from the version that it agrees with longest. */
function firstDifference(actual: Uint8Array, versions: readonly Uint8Array[]): number {
  const lengths = versions.map((version) => {
    const at = actual.findIndex((byte, index) => version[index] !== byte);
    return at < 0 ? actual.length : at;
  });
  return Math.max(0, ...lengths);
}

function hexOf(bytes: Uint8Array, at: number): string {
  const part = Buffer.from(bytes.subarray(at, at + 16)).toString("hex");
  return bytes.every((byte) => byte === 0) ? `${part} (a sector of zeros)` : part;
}
