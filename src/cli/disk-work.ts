/** Jobs that copy into a disk, as long work of a command: durable from time to time, and no faster than is wanted. */

import { RateLimit } from "../block/copy-rate.ts";
import type { Disk } from "../block/disk.ts";
import type { DiskJob } from "../block/disk-job.ts";
import type { LongWork } from "./long-work.ts";

export class DiskWork implements LongWork {
  readonly #job: DiskJob;
  readonly #written: Disk;
  readonly #limit: RateLimit;
  /** Bytes that the last step has copied. */
  #stepCopied = 0;

  /**
   * @param written the disk that the job writes to
   * @param rate bytes a second that are copied; undefined: as fast as it goes
   */
  constructor(job: DiskJob, written: Disk, rate?: number) {
    this.#job = job;
    this.#written = written;
    this.#limit = new RateLimit(rate);
  }

  get done(): number {
    return this.#job.done;
  }

  get total(): number {
    return this.#job.total;
  }

  get copied(): number {
    return this.#job.copied;
  }

  step(): boolean {
    const before = this.copied;
    const isDone = this.#job.step();
    this.#stepCopied = this.copied - before;
    return isDone;
  }

  flush(): void {
    this.#written.flush();
  }

  pauseAfter(startMs: number, endMs: number): number {
    return this.#limit.pauseAfter(this.#stepCopied, startMs, endMs);
  }
}
