/** Copying a disk to another one on several threads, as long work of a command. */

import { availableParallelism } from "node:os";
import { DiskCopier, type SharedCopy, type TellUnreadable } from "../block/convert/disk-copier.ts";
import { RateLimit } from "../block/copy-rate.ts";
import type { Disk } from "../block/disk.ts";
import { hex, printable } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import type { BitmapEdit } from "../formats/writer.ts";
import { runCopyThread } from "./copy-thread-start.ts";
import type { LongWork } from "./long-work.ts";
import { printNote } from "./print.ts";

/** A step of the main thread takes about so long, ms: signals are heard of, and the bar is drawn, in between. */
const STEP_MS = 100;

/** Threads that copy, this one included: more than there are processors are no gain. */
export function copyThreads(wanted: number): number {
  return Math.max(1, Math.min(wanted, availableParallelism()));
}

/** Prints what is lost, unless nothing is to be printed. */
export function tellUnreadable(quiet: boolean): TellUnreadable {
  return ({ path, offset, length, reason }) => {
    if (quiet) return;
    const what = `${path}: warning: ${length} bytes at ${hex(offset)} cannot be read`;
    printNote(printable(`${what}, and become zeros: ${reason}`));
  };
}

export interface CopyWorkOptions {
  /** Of `copyThreads`; the target is open for as many. */
  readonly threads: number;
  /** Bytes a second; undefined: as fast as it goes. Only with one thread. */
  readonly rate?: number | undefined;
  readonly quiet: boolean;
  /** What becomes of the target's persistent bitmaps when all is copied. Default: nothing. */
  readonly bitmapEdits?: readonly BitmapEdit[] | undefined;
}

/** All threads together; the first one is this one. */
export class CopyWork implements LongWork {
  readonly total: number;
  readonly #copier: DiskCopier;
  readonly #limit: RateLimit;
  /** Where there is a limit, no step is more than a piece. */
  readonly #stepMs: number;
  readonly #bitmapEdits: readonly BitmapEdit[];
  readonly #others: Promise<void>[];
  #failure: unknown;
  #stepDone = 0;
  #isWhole = false;

  constructor(shared: SharedCopy, { threads, rate, quiet, bitmapEdits = [] }: CopyWorkOptions) {
    this.total = shared.size;
    this.#bitmapEdits = bitmapEdits;
    this.#limit = new RateLimit(rate);
    this.#stepMs = Number.isFinite(rate ?? Number.POSITIVE_INFINITY) ? 0 : STEP_MS;
    this.#others = Array.from({ length: threads - 1 }, (_, index) => {
      return this.#startOther(runCopyThread({ shared, slot: index + 1, quiet }));
    });
    const resources = { clusterCache: new ClusterCache() };
    this.#copier = new DiskCopier(shared, 0, resources, tellUnreadable(quiet));
  }

  get done(): number {
    return this.#copier.position;
  }

  async step(): Promise<boolean> {
    const end = performance.now() + this.#stepMs;
    const before = this.done;
    let goesOn = this.#copier.step();
    while (goesOn && performance.now() < end) goesOn = this.#copier.step();
    this.#stepDone = this.done - before;
    if (goesOn) return false;
    await this.#endOthers();
    this.#isWhole = true;
    return true;
  }

  pauseAfter(startMs: number, endMs: number): number {
    return this.#limit.pauseAfter(this.#stepDone, startMs, endMs);
  }

  flush(): void {
    this.#copier.target.flush();
  }

  /**
   * Let all threads end after `run` did: whatever is copied by then is in the target's files, durably. If that is
   * all, bitmaps come last, in the same session: a crash before that leaves none, nobody else gets in between, and
   * what was copied is not noted in those that are new.
   *
   * @throws {TsimgfsError} what failed first
   */
  async run<T>(run: () => Promise<T>): Promise<T> {
    const { target } = this.#copier;
    let result: T;
    try {
      result = await run();
      await this.#stopOthers();
      if (this.#isWhole && this.#bitmapEdits.length > 0) target.editBitmaps(this.#bitmapEdits);
    } catch (error) {
      await this.#stopOthers().catch(() => undefined);
      closeAfterFailure(target);
      throw error;
    }
    target.close();
    return result;
  }

  async #stopOthers(): Promise<void> {
    this.#copier.stop();
    await this.#endOthers();
  }

  #startOther(thread: Promise<void>): Promise<void> {
    return thread.catch((error: unknown) => {
      this.#failure ??= error;
    });
  }

  async #endOthers(): Promise<void> {
    await Promise.all(this.#others);
    if (this.#failure !== undefined) throw this.#failure;
  }
}

/** What was reserved is given back, if that is possible. */
function closeAfterFailure(target: Disk): void {
  try {
    target.close();
  } catch {
    // The error that led here is the one to report.
  }
}
