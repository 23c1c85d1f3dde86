// What a test tells the process that serves a directory of slow files, and what it is told: JSON, a line each.

/** What is asked of the medium: `changes` are writes, syncs and new lengths; `all`: reads, changes, attributes. */
export type SlowCalls = "reads" | "changes" | "all";

/** What becomes of calls from now on. */
export type SlowFilesCommand =
  /** Each of these takes this long, and others no time. */
  | { readonly kind: "delay"; readonly ms: number; readonly calls: SlowCalls }
  /** These have no answer until `release`. */
  | { readonly kind: "freeze"; readonly calls: SlowCalls }
  /** Reads that touch a range of a file have no answer until `release`. */
  | { readonly kind: "hold"; readonly name: string; readonly start: number; readonly end: number }
  /** Reads that touch a range of a file are counted. */
  | { readonly kind: "watch"; readonly name: string; readonly start: number; readonly end: number }
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
  /** Of these, those that touched the range that is watched. */
  readonly watched: number;
  /** Have no answer, now. */
  readonly held: number;
}

/** The first line: the files are there. */
export const SLOW_FILES_READY = "ready";
