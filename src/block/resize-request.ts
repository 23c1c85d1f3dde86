/**
 * What somebody wants a disk's size to become, and whether that can be: for `resize`, and for the extended
 * attributes of devices. The rules are those of qemu-img resize.
 */

import { UsageError } from "../errors.ts";
import type { FormatName } from "../formats/driver.ts";
import type { Disk } from "./disk.ts";
import type { GrowthPreallocation, ResizePieces } from "./disk-resizer.ts";
import { parseBytes } from "./parse-size.ts";

/** The unit of sizes that images can say, bytes. */
const SECTOR_SIZE = 512;
/** Ours: sizes are numbers. */
const SIZE_MAX = 2n ** 53n - BigInt(SECTOR_SIZE);

/** What the host can set aside in images of each format. */
const PREALLOCATIONS: Readonly<Record<FormatName, readonly GrowthPreallocation[]>> = {
  raw: ["off", "falloc", "full"],
  qcow2: ["off", "metadata", "falloc", "full"],
  qed: ["off"],
};

/** A size, or a difference to the size that there is. */
export interface SizeChange {
  readonly sign: "" | "+" | "-";
  /** Bytes. */
  readonly bytes: bigint;
}

export interface ResizeRequest {
  readonly change: SizeChange;
  readonly mayShrink: boolean;
  readonly preallocation: GrowthPreallocation;
}

/** `10G`, `+512M`, `-1.5k`; undefined: none of these. */
export function parseSizeChange(text: string): SizeChange | undefined {
  const [first] = text;
  const sign = first === "+" || first === "-" ? first : "";
  const rest = text.slice(sign.length);
  const bytes = /^\d/.test(rest) ? parseBytes(rest) : undefined;
  return bytes === undefined ? undefined : { sign, bytes };
}

/** What is resized, as far as it decides what it can become. */
export interface Resizable {
  /** For messages. */
  readonly path: string;
  /** Bytes. */
  readonly size: number;
  readonly format: FormatName;
}

/**
 * Change the size of a disk.
 *
 * @throws {UsageError} it is refused; nothing has changed
 * @throws {TsimgfsError} it cannot be done
 */
export function resizeDisk(disk: Disk, request: ResizeRequest): void {
  disk.resize(wantedSize(disk, request), request.preallocation);
}

/** Changing the size of a disk, as `resizeDisk`, by whoever may give it up. */
export class ResizeJob {
  readonly #disk: Disk;
  readonly #pieces: ResizePieces;

  /** @throws {UsageError} it is refused */
  constructor(disk: Disk, request: ResizeRequest) {
    this.#disk = disk;
    this.#pieces = disk.resizeInPieces(wantedSize(disk, request), request.preallocation);
  }

  /**
   * Do a piece, which takes about a tenth of a second at the most.
   *
   * @returns whether the disk has its new size, durably
   * @throws {TsimgfsError} it cannot be done; the disk has its old size
   */
  step(): boolean {
    return this.#pieces.next().done === true;
  }

  /** Make durable what was done: at the end there is less to wait for. */
  flush(): void {
    this.#disk.flush();
  }

  /** Give it up before its end, as Disk.resizeInPieces has it. */
  abandon(): void {
    this.#pieces.return();
  }
}

function wantedSize(disk: Disk, request: ResizeRequest): number {
  const { format, storage } = disk.chain.image;
  return sizeAfter(request, { path: storage.path, size: disk.currentSize(), format });
}

/**
 * The size that is wanted, bytes.
 *
 * @throws {UsageError} it is refused
 */
export function sizeAfter(request: ResizeRequest, { path, size, format }: Resizable): number {
  const { change, mayShrink, preallocation } = request;
  const refuse = (reason: string): never => {
    throw new UsageError(path, reason);
  };
  const bytes = bytesAfter(BigInt(size), change);
  if (bytes <= 0) refuse("the new image size must be positive");
  if (bytes > SIZE_MAX) {
    refuse(`a size of ${bytes} is above the limit of 2^53 - ${SECTOR_SIZE} bytes`);
  }
  const wanted = Number(bytes);
  if (wanted < size && !mayShrink) {
    refuse("shrinking it deletes all data beyond its new end; use the --shrink option to do that");
  }
  if (preallocation !== "off" && wanted <= size) {
    refuse("preallocation can only be used for growing images");
  }
  if (!PREALLOCATIONS[format].includes(preallocation)) {
    refuse(`unsupported preallocation mode "${preallocation}" for ${format} images`);
  }
  if (format !== "raw" && wanted % SECTOR_SIZE !== 0) {
    refuse(`the new size must be a multiple of ${SECTOR_SIZE}, and ${wanted} is not`);
  }
  return wanted;
}

function bytesAfter(size: bigint, { sign, bytes }: SizeChange): bigint {
  if (sign === "") return bytes;
  return sign === "+" ? size + bytes : size - bytes;
}
