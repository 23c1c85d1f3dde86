/** What reading a hostile image came to, by us and by qemu-img, and when the two agree. */

export const SECTOR_SIZE = 512;

/** Content of a part of the device. */
export interface RangeContent {
  /** Bytes; a multiple of the sector size. */
  readonly offset: number;
  readonly bytes: Buffer;
  /** Sectors of the device that could not be read, and why. */
  readonly failedSectors: ReadonlyMap<number, string>;
  /** Sectors of the device that lie in compressed clusters, as far as known. */
  readonly compressedSectors: ReadonlySet<number>;
}

export type Outcome =
  | { readonly kind: "refused"; readonly reason: string }
  | {
      readonly kind: "open";
      readonly virtualSize: number;
      readonly ranges: readonly RangeContent[];
    };

/**
 * How much stricter than QEMU we may be. "same": every byte that QEMU reads, but for what reasons of
 * ours allow. A pattern: these reasons too. "anything": only crashes, hangs and different bytes count.
 */
export type Strictness = "same" | "anything" | RegExp;

/** Refusals that need no consent of QEMU: stated limits of ours, and references past the end of the file. */
const STRICTER_REASONS =
  /2\^53|past the end|beyond the end|after the end|end of (the )?file|file (has|is) only|encrypt|data file name has/i;

/** QEMU 7.2 takes the end of a QED table of one cluster, which its specification allows, for an overflow. */
const REFUSED_BY_MISTAKE = /QED table offset is invalid/;

/** A disagreement in one line, or undefined. */
export function disagreement(
  ours: Outcome,
  qemus: Outcome,
  strictness: Strictness,
): string | undefined {
  if (qemus.kind === "refused") {
    const isRefusal = !REFUSED_BY_MISTAKE.test(qemus.reason);
    return ours.kind === "open" && isRefusal && someSectorReads(ours)
      ? `opened and read, but qemu-img refuses: ${qemus.reason}`
      : undefined;
  }
  if (ours.kind === "refused") {
    return isAllowed(ours.reason, strictness)
      ? undefined
      : `refused, but qemu-img reads it: ${ours.reason}`;
  }
  if (ours.virtualSize !== qemus.virtualSize) {
    return `virtual size ${ours.virtualSize}, but ${qemus.virtualSize} by qemu-img`;
  }
  for (const [index, range] of qemus.ranges.entries()) {
    const our = ours.ranges[index];
    if (
      our === undefined ||
      our.offset !== range.offset ||
      our.bytes.length !== range.bytes.length
    ) {
      return `range ${index} is not the one that qemu-img read`;
    }
    const found = rangeDisagreement(our, range, strictness);
    if (found !== undefined) {
      return found;
    }
  }
  return undefined;
}

function isAllowed(reason: string, strictness: Strictness): boolean {
  const isOwn = strictness instanceof RegExp && strictness.test(reason);
  return strictness === "anything" || isOwn || STRICTER_REASONS.test(reason);
}

function someSectorReads(outcome: Extract<Outcome, { kind: "open" }>): boolean {
  return outcome.ranges.some(
    (range) => range.failedSectors.size < range.bytes.length / SECTOR_SIZE,
  );
}

function rangeDisagreement(
  our: RangeContent,
  qemus: RangeContent,
  strictness: Strictness,
): string | undefined {
  for (let at = 0; at < our.bytes.length; at += SECTOR_SIZE) {
    const sector = (our.offset + at) / SECTOR_SIZE;
    const where = `0x${(our.offset + at).toString(16)}`;
    const failure = our.failedSectors.get(sector);
    if (failure !== undefined) {
      if (!qemus.failedSectors.has(sector) && !isAllowed(failure, strictness)) {
        return `failed at ${where}, where qemu-img reads: ${failure}`;
      }
    } else if (qemus.failedSectors.has(sector)) {
      // QEMU gives up a damaged compressed cluster; we read it up to the damage, and larger windows.
      if (!our.compressedSectors.has(sector)) {
        return `read at ${where}, where qemu-img fails`;
      }
    } else if (our.bytes.compare(qemus.bytes, at, at + SECTOR_SIZE, at, at + SECTOR_SIZE) !== 0) {
      return `other bytes than qemu-img at ${where}`;
    }
  }
  return undefined;
}
