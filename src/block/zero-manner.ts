/** How zeros are made: what a user asks for, and what becomes of it under the policy of the disk. */

import assert from "node:assert";
import type { ZeroSpace } from "../formats/writer.ts";

/** How zeros are made. */
export interface ZeroManner {
  readonly space: ZeroSpace;
  /** Zeros may be written as data, where tables cannot say them. */
  readonly mayWrite: boolean;
  /** The image itself says it, also where a backing file has zeros. */
  readonly isExplicit: boolean;
}

/** What is asked for. As QEMU's flags for its drivers. */
export interface ZeroFlags {
  /** Their space on the host is not needed any more; else it stays the disk's. */
  readonly unmap: boolean;
  /** Not by writing zeros, which takes as long as all writing does. */
  readonly noFallback?: boolean;
  /** The image itself says so, if its format can, also where nothing would read as zeros too. */
  readonly explicit?: boolean;
}

/** Bits of how zeros are made: as the fields of ZeroManner say. */
const RELEASES = 1;
const BY_TABLES = 2;
const EXPLICIT = 4;
/** All manners, by these bits: made once, and not for each request. */
const MANNERS: readonly ZeroManner[] = Array.from({ length: 8 }, (_, bits) => ({
  space: (bits & RELEASES) === 0 ? "keep" : "release",
  mayWrite: (bits & BY_TABLES) === 0,
  isExplicit: (bits & EXPLICIT) !== 0,
}));

/** Zeros of a backing file, which the image says itself from then on. */
export const COPIED_ZEROS = mannerAt(RELEASES | BY_TABLES | EXPLICIT);

/** @param isKept the policy keeps space also where nobody needs it */
export function mannerOf(
  { unmap, noFallback = false, explicit = false }: ZeroFlags,
  isKept: boolean,
): ZeroManner {
  const releases = unmap && !isKept;
  return mannerAt(
    (releases ? RELEASES : 0) | (noFallback ? BY_TABLES : 0) | (explicit ? EXPLICIT : 0),
  );
}

/** Zeros that need no space. */
export function releasedZeros(isKept: boolean): ZeroManner {
  return mannerAt(isKept ? 0 : RELEASES);
}

function mannerAt(bits: number): ZeroManner {
  const manner = MANNERS[bits];
  assert(manner !== undefined);
  return manner;
}
