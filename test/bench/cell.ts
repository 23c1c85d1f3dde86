/** What a measurement is: a rate that is better when it is greater, of one server's device. */

import type { ServedImage } from "./served-image.ts";
import type { Server, ServerName } from "./servers.ts";

export type Unit = "k/s" | "/s" | "MiB/s";

/** What a measurement is called. */
export interface CellTitle {
  readonly title: string;
  readonly unit: Unit;
}

export interface Cell extends CellTitle {
  /** One sample, in `unit`. */
  measure(target: Target): Promise<number>;
}

/** A measurement of a program that works on the image file itself: no server has it open. */
export interface FileCell extends CellTitle {
  /** One sample, in `unit`. Afterwards the image is what the program made of it. */
  measureFile(target: FileTarget): Promise<number>;
}

export interface Target {
  readonly server: Server;
  /** Of the image that is served. */
  readonly imagePath: string;
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

export interface FileTarget {
  /** Whose program it is. */
  readonly name: ServerName;
  readonly image: ServedImage;
  readonly signal: AbortSignal;
}

export interface FileTree {
  readonly path: string;
  /** Of all files together, bytes. */
  readonly size: number;
}

export const MIB = 1024 * 1024;
