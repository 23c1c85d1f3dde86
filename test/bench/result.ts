/** What measuring one image gives. */

import type { CellName } from "./cells.ts";
import type { ImageName } from "./image-names.ts";
import type { ServerName } from "./servers.ts";

export interface ServerResult {
  readonly name: ServerName;
  readonly samples: ReadonlyMap<CellName, readonly number[]>;
  readonly readyMs: readonly number[];
  /** The greatest that was seen after a cell, or after all of them. */
  readonly residentMib: number;
}

export interface ImageResult {
  readonly image: ImageName;
  readonly access: "read-only" | "read-write";
  readonly cells: readonly CellName[];
  readonly servers: readonly ServerResult[];
  /** Of the servers' mounts; empty where writing was measured. */
  readonly readAheadKb: ReadonlyMap<ServerName, number | undefined>;
  /** Share of CPU time that others used just before each round, 0 to 1. */
  readonly busyShares: readonly number[];
  /** Least share of the image that was in the page cache before a round, 0 to 1. */
  readonly cachedShare: number;
}
