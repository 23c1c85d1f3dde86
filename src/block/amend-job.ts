/**
 * Amending: other properties for an image that exists, in steps, after each of which it is a valid image with the
 * same disk. Whoever stops in between, or is killed, has some of them.
 */

import { UnsupportedError, UsageError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import { EXTENT, Extent } from "../formats/driver.ts";
import {
  type PlannedAmendment,
  planQcow2Amendment,
  type Qcow2Amendment,
} from "../formats/qcow2/amend/amend.ts";
import { LocalFile } from "../storage/local-file.ts";
import { attachDisk } from "./attach-disk.ts";
import type { Disk } from "./disk.ts";
import { closeChain, type OpenChain, type OpenOptions, openChain } from "./open-chain.ts";
import { resizeDisk } from "./resize-request.ts";

/** Bytes of the disk that are looked at in a step. */
const STEP_MAX = 64 * 1024 * 1024;

export interface AmendRequest {
  readonly path: string;
  readonly amendment: Qcow2Amendment;
  /** Bytes; undefined: it stays. As with qemu-img, no more is asked where it becomes less. */
  readonly size: number | undefined;
  readonly open: Pick<OpenOptions, "format" | "backingPolicy">;
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

  /** Bytes of the disk that are done, of all that there are. */
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
    const { size, warn } = this.#request;
    let planned: PlannedAmendment | undefined;
    let hasBacking = false;
    const first = this.#open("places");
    try {
      first.warnings.forEach(warn);
      hasBacking = first.layers.length > 1;
      planned = this.#plan(first);
      for (const step of planned.steps) {
        yield;
        step(currentFile(first));
      }
    } finally {
      closeChain(first);
    }
    const { downgrade } = planned;
    if (size !== undefined) {
      yield;
      this.#withDisk("contents", (disk) => this.#resize(disk, size));
    }
    if (downgrade === undefined) return;
    if (hasBacking) yield* this.#expandZeroClusters();
    yield;
    const last = this.#open("contents");
    try {
      last.warnings.forEach(warn);
      downgrade(currentFile(last));
    } finally {
      closeChain(last);
    }
  }

  #plan(chain: OpenChain): PlannedAmendment {
    const { path, amendment, size } = this.#request;
    const [top] = chain.layers;
    if (top?.layout.format !== "qcow2") {
      const reason = `${top?.layout.format} images do not support amendment of options`;
      throw new UnsupportedError(path, reason);
    }
    if (size !== undefined && size % 512 !== 0) {
      throw new UsageError(path, `the new size must be a multiple of 512, and ${size} is not`);
    }
    this.#total = Math.max(1, top.layout.virtualSize);
    return planQcow2Amendment(currentFile(chain), amendment);
  }

  #resize(disk: Disk, bytes: number): void {
    const change = { sign: "", bytes } as const;
    resizeDisk(disk, { change, mayShrink: true, preallocation: "off" });
    this.#total = disk.currentSize();
  }

  /** Zeros that hide a backing file become data, in sparse places. */
  *#expandZeroClusters(): Generator<void, void, void> {
    const chain = this.#open("places");
    try {
      const disk = attach(chain);
      try {
        const extent = new Extent();
        const { image } = disk.chain;
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

  #withDisk(change: "contents" | "places", use: (disk: Disk) => void): void {
    const chain = this.#open(change);
    try {
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

  /** @param change what is going to be changed of the disk */
  #open(change: "contents" | "places"): OpenChain {
    const { path, open } = this.#request;
    const policy = {
      copyOnRead: false,
      detectZeroes: "off",
      discard: "unmap",
      growable: true,
    } as const;
    const writing = { policy, threads: 1, onlyPlaces: change === "places" };
    return openChain(path, { ...open, forceShare: false, writing });
  }
}

function attach(chain: OpenChain): Disk {
  const resources = { clusterCache: new ClusterCache() };
  return attachDisk(chain, resources, { slot: 0, requestMaintenance: undefined });
}

/** The image's file, with the length that it has by now. */
function currentFile({ layers }: OpenChain): LocalFile {
  const [top] = layers;
  if (top === undefined) throw new RangeError("a chain has at least one image");
  return new LocalFile({ ...top.file, length: new LocalFile(top.file).currentLength() });
}
