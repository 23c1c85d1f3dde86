/**
 * Amending: other properties for an image that exists, in steps, after each of which it is a valid image with the
 * same disk. Whoever stops in between, or is killed, has some of them.
 */

import { UnsupportedError, UsageError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { EXTENT, Extent } from "../formats/driver.ts";
import { determineFormat, readLayout, repairBeforeWriting } from "../formats/formats.ts";
import {
  type PlannedAmendment,
  planQcow2Amendment,
  type Qcow2Amendment,
} from "../formats/qcow2/amend/amend.ts";
import { expandSnapshotZeros } from "../formats/qcow2/amend/snapshot-zeros.ts";
import { lockForWriting } from "../storage/image-lock.ts";
import { LocalFile } from "../storage/local-file.ts";
import { attachDisk } from "./attach-disk.ts";
import type { Disk } from "./disk.ts";
import { closeChain, type OpenChain, type OpenOptions, openChain } from "./open-chain.ts";
import { missingBackingWarning } from "./referenced-file.ts";
import { resizeDisk } from "./resize-request.ts";
import type { WritePolicy } from "./write-policy.ts";

/** The unit of sizes, bytes. */
const SECTOR_SIZE = 512;

const POLICY: WritePolicy = {
  copyOnRead: false,
  detectZeroes: "off",
  discard: "unmap",
  growable: true,
};

/** Bytes of the disk that are looked at in a step. */
const STEP_MAX = 64 * 1024 * 1024;

export interface AmendRequest {
  readonly path: string;
  readonly amendment: Qcow2Amendment;
  /** Bytes; undefined: it stays. As with qemu-img, no more is asked where it becomes less. */
  readonly size: number | undefined;
  readonly open: Pick<OpenOptions, "format" | "backingPolicy" | "secrets" | "backingSecrets">;
  /** Takes what the user should know, one line each. */
  readonly warn: (line: string) => void;
}

export class AmendJob {
  readonly #request: AmendRequest;
  readonly #work: Generator<void, void, void>;
  #done = 0;
  #total = 1;

  constructor(request: AmendRequest) {
    this.#request = request;
    this.#work = this.#run();
  }

  /** Bytes of a disk that are done in this pass, of all that there are: those of snapshots are a pass of their own. */
  get done(): number {
    return this.#done;
  }

  get total(): number {
    return this.#total;
  }

  /**
   * Do the next step; the first one looks whether all that is wanted can be.
   *
   * @returns whether the end is reached
   * @throws {TsimgfsError} the image is a valid one, and closed
   */
  step(): boolean {
    return this.#work.next().done === true;
  }

  /** Close the image, be it done or not. */
  close(): void {
    this.#work.return();
  }

  *#run(): Generator<void, void, void> {
    const { size } = this.#request;
    let planned: PlannedAmendment;
    const first = this.#openFile();
    try {
      planned = this.#plan(first);
      for (const step of planned.steps) {
        yield;
        step(first);
      }
    } finally {
      first.close();
    }
    if (size !== undefined) {
      yield;
      this.#withDisk((disk) => this.#resize(disk, size));
    }
    if (planned.downgrade === undefined) return;
    if (planned.keepsBacking) {
      yield* this.#expandSnapshots();
      yield* this.#expandZeroClusters();
    }
    yield;
    const last = this.#openFile();
    try {
      planned.downgrade(last);
    } finally {
      last.close();
    }
  }

  /** The image's file alone: what it refers to need not be there. What a crash has left behind is repaired. */
  #openFile(): LocalFile {
    const { path, open, warn } = this.#request;
    const file = LocalFile.open(path, "read-write");
    try {
      const format = determineFormat(file, open.format);
      if (format !== "qcow2") {
        throw new UnsupportedError(path, `${format} images do not support amendment of options`);
      }
      lockForWriting(file);
      const layout = readLayout(format, file, { tableCacheMax: 0, keepsL1: false });
      const repaired = repairBeforeWriting(layout, file);
      if (repaired !== undefined) warn(`${path}: warning: ${repaired}`);
      return file;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  #plan(file: LocalFile): PlannedAmendment {
    const { path, amendment, size, open } = this.#request;
    if (size !== undefined && size % SECTOR_SIZE !== 0) {
      const reason = `the new size must be a multiple of ${SECTOR_SIZE}, and ${size} is not`;
      throw new UsageError(path, reason);
    }
    const planned = planQcow2Amendment(file, amendment, open.secrets ?? []);
    const { backingFile = "" } = amendment;
    const missing = backingFile === "" ? undefined : missingBackingWarning(path, backingFile);
    if (missing !== undefined) this.#request.warn(missing);
    if (planned.losesBitmaps) {
      this.#request.warn(`${path}: warning: its persistent bitmaps are lost with compat=0.10`);
    }
    return planned;
  }

  #resize(disk: Disk, bytes: number): void {
    const change = { sign: "", bytes: BigInt(bytes) } as const;
    resizeDisk(disk, { change, mayShrink: true, preallocation: "off" });
    this.#total = disk.currentSize();
  }

  /** Zeros of snapshots, and of the disk as far as it shares their tables. */
  *#expandSnapshots(): Generator<void, void, void> {
    const file = this.#openFile();
    try {
      for (const { done, total } of expandSnapshotZeros(file)) {
        this.#done = done;
        this.#total = total;
        yield;
      }
    } finally {
      file.close();
    }
  }

  /** Zeros that hide a backing file become data, in sparse places. */
  *#expandZeroClusters(): Generator<void, void, void> {
    const chain = this.#openChain();
    try {
      const disk = attach(chain);
      try {
        const extent = new Extent();
        const { image } = disk.chain;
        this.#done = 0;
        this.#total = disk.virtualSize;
        for (let stop = STEP_MAX; this.#done < this.#total; this.#done += extent.length) {
          image.mapExtent(this.#done, Math.min(this.#total - this.#done, STEP_MAX), extent);
          const { kind, length } = extent;
          if (kind === EXTENT.zero) disk.preallocate(this.#done, length, "metadata");
          if (this.#done < stop) continue;
          stop = this.#done + STEP_MAX;
          yield;
        }
      } finally {
        disk.close();
      }
    } finally {
      closeChain(chain);
    }
  }

  #withDisk(use: (disk: Disk) => void): void {
    const chain = this.#openChain();
    try {
      chain.warnings.forEach(this.#request.warn);
      const disk = attach(chain);
      try {
        use(disk);
      } finally {
        disk.close();
      }
    } finally {
      closeChain(chain);
    }
  }

  #openChain(): OpenChain {
    const { path, open } = this.#request;
    const writing = { policy: POLICY, threads: 1 };
    return openChain(path, { ...open, forceShare: false, writing });
  }
}

function attach(chain: OpenChain): Disk {
  const resources = { clusterCache: new ClusterCache() };
  return attachDisk(chain, resources, { slot: 0, requestMaintenance: undefined });
}
