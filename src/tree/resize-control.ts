/**
 * The extended attributes `user.tsimgfs.resize` and `user.tsimgfs.resize.shrink` of a device, which take the size
 * that it is to have: only the second one lets it become smaller.
 */

import type { Disk } from "../block/disk.ts";
import { GROWTH_PREALLOCATIONS } from "../block/disk-resizer.ts";
import { parseSizeChange, ResizeJob, type ResizeRequest } from "../block/resize-request.ts";
import { TsimgfsError } from "../errors.ts";
import type { Interruptions } from "../threads/interruptions.ts";
import type { TruncatedFiles } from "./truncated-files.ts";

export const RESIZE_XATTRS = {
  grow: "user.tsimgfs.resize",
  shrink: "user.tsimgfs.resize.shrink",
} as const;

const PREALLOCATION = /^(.*),preallocation=(\w+)$/;

/** `10G`, `+1G`, `20G,preallocation=full`; undefined: none of these. */
export function parseResizeCommand(text: string, mayShrink: boolean): ResizeRequest | undefined {
  const [, size = text, mode = "off"] = PREALLOCATION.exec(text) ?? [];
  const change = parseSizeChange(size);
  const preallocation = GROWTH_PREALLOCATIONS.find((word) => word === mode);
  if (change === undefined || preallocation === undefined) return undefined;
  return { change, mayShrink, preallocation };
}

/** The size of one device, as one thread sees it. */
export class ResizeControl {
  readonly #disk: Disk;
  readonly #truncated: TruncatedFiles;
  readonly #interruptions: Interruptions;

  /**
   * @param truncated of the device, which is told when a part of it has gone
   * @param interruptions of this thread
   */
  constructor(disk: Disk, truncated: TruncatedFiles, interruptions: Interruptions) {
    this.#disk = disk;
    this.#truncated = truncated;
    this.#interruptions = interruptions;
  }

  /**
   * Let the disk have another size. It has when this returns.
   *
   * @throws {TsimgfsError} EINVAL: the value says nothing, or what cannot be; EINTR: nobody waits for it any more, and
   * the disk has its old size
   */
  command(how: keyof typeof RESIZE_XATTRS, text: string): void {
    const request = parseResizeCommand(text, how === "shrink");
    if (request === undefined) {
      const { path } = this.#disk.chain.image.storage;
      const reason = `"${text}" is not a size such as 20G or +1G, nor one with ,preallocation=MODE`;
      throw new TsimgfsError("EINVAL", path, reason);
    }
    const before = this.#disk.currentSize();
    try {
      this.#resize(request);
    } finally {
      // What was cut off must not be read from the kernel's cache when the disk grows again.
      if (this.#disk.currentSize() < before) this.#truncated.markStale();
    }
  }

  #resize(request: ResizeRequest): void {
    const job = new ResizeJob(this.#disk, request);
    while (!job.step()) {
      if (this.#interruptions.isWanted) continue;
      job.abandon();
      const { path } = this.#disk.chain.image.storage;
      throw new TsimgfsError("EINTR", path, "a change of its size was interrupted");
    }
  }
}
