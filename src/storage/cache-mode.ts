/** QEMU's cache modes: whether the host's page cache is used, and what becomes durable when. */

export const CACHE_MODES = ["none", "writeback", "unsafe", "directsync", "writethrough"] as const;
export type CacheMode = (typeof CACHE_MODES)[number];

interface CacheManner {
  /** Bytes go past the page cache where they lie and end on pages: O_DIRECT. */
  readonly direct: boolean;
  /** Each write is durable when it ends: O_DSYNC. */
  readonly writesThrough: boolean;
  /** `sync` makes durable what was written; else that is left to the host. */
  readonly syncs: boolean;
}

// biome-ignore format: a table reads in columns
export const CACHE_MANNERS: Readonly<Record<CacheMode, CacheManner>> = {
  none:         { direct: true,  writesThrough: false, syncs: true },
  writeback:    { direct: false, writesThrough: false, syncs: true },
  unsafe:       { direct: false, writesThrough: false, syncs: false },
  directsync:   { direct: true,  writesThrough: true,  syncs: true },
  writethrough: { direct: false, writesThrough: true,  syncs: true },
};
