/**
 * The extended attributes `user.tsimgfs.resize` and `user.tsimgfs.resize.shrink` of a device, which take the size
 * that it is to have: only the second one lets it become smaller.
 */

import type { Disk } from "../block/disk.ts";
import { GROWTH_PREALLOCATIONS } from "../block/disk-resizer.ts";
import { parseSizeChange, type ResizeRequest, resizeDisk } from "../block/resize-request.ts";
import { TsimgfsError } from "../errors.ts";
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

  /** @param truncated of the device, which is told when a part of it has gone */
  constructor(disk: Disk, truncated: TruncatedFiles) {
    this.#disk = disk;
    this.#truncated = truncated;
  }

  /**
   * Let the disk have another size. It has when this returns.
   *
   * @throws {TsimgfsError} EINVAL: the value says nothing, or what cannot be
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
      resizeDisk(this.#disk, request);
    } finally {
      // What was cut off must not be read from the kernel's cache when the disk grows again.
      if (this.#disk.currentSize() < before) this.#truncated.markStale();
    }
  }
}
