// What a test tells the process that serves a directory of slow files, and what it is told: JSON, a line each.

/** What becomes of reads from now on. */
export type SlowFilesCommand =
  /** Each takes this long. */
  | { readonly kind: "delay"; readonly ms: number }
  /** Those that touch a range of a file have no answer until `release`. */
  | { readonly kind: "hold"; readonly name: string; readonly start: number; readonly end: number }
  /** What is held is answered, and nothing is held any more. */
  | { readonly kind: "release" }
  /** Forget what was counted. */
  | { readonly kind: "forget" }
  /** Answered by a report. */
  | { readonly kind: "report" };

/** What reads there were. */
export interface SlowFilesReport {
  /** Since the start, or since they were forgotten. */
  readonly reads: number;
  /** Of these, the greatest number under way at once. */
  readonly mostAtOnce: number;
  /** Have no answer, now. */
  readonly held: number;
}

/** The first line: the files are there. */
export const SLOW_FILES_READY = "ready";
