/** How an image is measured, whether it is read or written. */

import type { ServerName } from "./servers.ts";

export interface Plan {
  readonly servers: readonly ServerName[];
  readonly rounds: number;
  readonly seconds: number;
  readonly threads: number | undefined;
  readonly rawfuse: string | undefined;
  readonly cpus: readonly number[];
  readonly directory: string;
  readonly copyDirectory: string;
  readonly signal: AbortSignal;
  /** Told what is being done. */
  readonly progress: (text: string) => void;
}

/** How long others' use of the CPUs is watched before a round. */
export const BUSY_SAMPLE_MS = 250;
