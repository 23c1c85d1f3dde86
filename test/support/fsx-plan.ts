// What the fsx program is told to do, and what it reports: JSON between it and the test.

/** How a device is opened: through the page cache, with O_DIRECT, or one after the other. */
export type FsxAccess = "buffered" | "direct" | "mixed";

export interface FsxPlan {
  readonly device: string;
  /** A raw file: at first what the device contains; at the end, the range as it must be, is written there. */
  readonly expected: string;
  /**
   * Another raw file, for the end "until-gone": the range as it would be if the operation that
   * failed had been done.
   */
  readonly attempted: string;
  /** The range of the device that belongs to this process alone, bytes. */
  readonly start: number;
  readonly length: number;
  /** A multiple of it is where offsets tend to be: the cluster size. */
  readonly unit: number;
  readonly maxLength: number;
  readonly seed: number;
  readonly access: FsxAccess;
  /** Reads and writes through mmap(2) too. A daemon that is killed would turn them into signals. */
  readonly mappings: boolean;
  /** Holes are punched, ranges zeroed and allocated; else written to. */
  readonly fallocate: boolean;
  /** A number of operations, or until the device does not answer any more. */
  readonly end: { readonly operations: number } | "until-gone";
  /** Errors that operations may end with; each byte of their range is old or new then. */
  readonly tolerated: readonly string[];
}

export interface FsxReport {
  readonly operations: number;
  /** Operations that ended with a tolerated error. */
  readonly failures: number;
}

/** What the program prints before its first operation. */
export const FSX_STARTED = "started";
