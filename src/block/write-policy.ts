/** How an image is written to: what the user chose, as plain data. */

/** Zeros that are written become zero clusters; with `unmap`, for sure without a place on the host. */
export const DETECT_ZEROES = ["off", "on", "unmap"] as const;
export type DetectZeroes = (typeof DETECT_ZEROES)[number];

/** What becomes of space on the host that is not needed any more. */
export const DISCARD = ["ignore", "unmap"] as const;
export type Discard = (typeof DISCARD)[number];

/** Persistent bitmaps are kept up; or images that have some are not written to. */
export const BITMAP_POLICIES = ["track", "refuse"] as const;
export type BitmapPolicy = (typeof BITMAP_POLICIES)[number];

export interface WritePolicy {
  /** What is read from a backing file is stored in the image. */
  readonly copyOnRead: boolean;
  readonly detectZeroes: DetectZeroes;
  readonly discard: Discard;
  /** The size may change: by truncate, and by writes past the end. */
  readonly growable: boolean;
  /** Default: track. */
  readonly bitmaps?: BitmapPolicy | undefined;
  /** Each of its threads has a processor to itself, and may keep it while it waits for another one. Default: no. */
  readonly ownProcessors?: boolean | undefined;
}
