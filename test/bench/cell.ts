/** What a measurement is: a rate that is better when it is greater, of one server's device. */

import type { Server } from "./servers.ts";

export type Unit = "k/s" | "/s" | "MiB/s";

export interface Cell {
  readonly title: string;
  readonly unit: Unit;
  /** One sample, in `unit`. */
  measure(target: Target): Promise<number>;
}

export interface Target {
  readonly server: Server;
  /** Of one fio measurement that is not over when the device ends. */
  readonly seconds: number;
  /** The CPUs that we may run on. */
  readonly cpus: readonly number[];
  /** On tmpfs, for copies and mount points. */
  readonly copyDirectory: string;
  /** A directory tree on tmpfs to be copied, for the cell that does so. */
  readonly tree: FileTree | undefined;
  readonly signal: AbortSignal;
}

export interface FileTree {
  readonly path: string;
  /** Of all files together, bytes. */
  readonly size: number;
}

export const MIB = 1024 * 1024;
