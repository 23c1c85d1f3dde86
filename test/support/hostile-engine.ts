/** What our engine makes of a hostile image: the whole device, or samples, sector by sector where reads fail. */

import { attachChain } from "../../src/block/attach-disk.ts";
import type { BackingChain } from "../../src/block/backing-chain.ts";
import { BlockStatus, BlockStatusWalker } from "../../src/block/block-status.ts";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import type { BackingPolicy } from "../../src/block/referenced-file.ts";
import { TsimgfsError } from "../../src/errors.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { expectBoundedMemory } from "./hostile-memory.ts";
import { type Outcome, type RangeContent, SECTOR_SIZE } from "./hostile-outcome.ts";
import { type DeviceRange, sampledRanges } from "./hostile-ranges.ts";
import { UNPRINTABLE } from "./hostile-text.ts";

export interface EngineOptions {
  readonly format?: "qcow2" | "qed" | "raw" | undefined;
  readonly snapshotIndex?: number | undefined;
  readonly backingPolicy?: BackingPolicy | undefined;
}

/** Largest single read: what the kernel asks for. */
const READ_MAX = 1024 * 1024;

/** What surrounds the target of a read. */
const GUARD = 0xa5;

/** Extents that are mapped at most; a table can hold more than a test has time for. */
const STATUSES_MAX = 20_000;

/** The outcome by the engine. Throws what is not an expected failure, and if too much memory was used. */
export function outcomeByEngine(path: string, options: EngineOptions): Outcome {
  return expectBoundedMemory(path, () => readEverything(path, options));
}

function readEverything(path: string, options: EngineOptions): Outcome {
  let opened: ReturnType<typeof openChain>;
  try {
    const { format, backingPolicy } = options;
    opened = openChain(path, { format, backingPolicy, forceShare: false });
  } catch (error) {
    return { kind: "refused", reason: expectedFailure(error) };
  }
  try {
    return readOpened(opened, options);
  } catch (error) {
    return { kind: "refused", reason: expectedFailure(error) };
  } finally {
    closeChain(opened);
  }
}

function readOpened(opened: ReturnType<typeof openChain>, options: EngineOptions): Outcome {
  const disk = attachChain(opened.layers, { clusterCache: new ClusterCache() });
  for (const _snapshot of disk.image.readSnapshots());
  const chain =
    options.snapshotIndex === undefined ? disk : disk.openSnapshot(options.snapshotIndex);
  const reader = new DeviceReader(chain);
  const ranges = sampledRanges(chain.virtualSize).map((range) => {
    const content = reader.read(range);
    return { ...content, compressedSectors: walkStatus(chain, content) };
  });
  return { kind: "open", virtualSize: chain.virtualSize, ranges };
}

/** The one line of a failure that tsimgfs expects; anything else is a defect and thrown on. */
function expectedFailure(error: unknown): string {
  if (!(error instanceof TsimgfsError)) {
    throw error;
  }
  if (UNPRINTABLE.test(error.message)) {
    throw new Error(`not one printable line: ${JSON.stringify(error.message)}`, { cause: error });
  }
  return error.message;
}

class DeviceReader {
  readonly #chain: BackingChain;
  readonly #target = NativeBuffer.allocate(READ_MAX + 2 * SECTOR_SIZE);

  constructor(chain: BackingChain) {
    this.#chain = chain;
  }

  read({ offset, length }: DeviceRange): Omit<RangeContent, "compressedSectors"> {
    const bytes = Buffer.alloc(length);
    const failedSectors = new Map<number, string>();
    for (let at = 0; at < length; at += READ_MAX) {
      this.#readPart(
        { offset: offset + at, length: Math.min(READ_MAX, length - at) },
        offset,
        bytes,
        failedSectors,
      );
    }
    return { offset, bytes, failedSectors };
  }

  /** Reads a part in one go; if that fails, in two halves, down to single sectors. */
  #readPart(
    part: DeviceRange,
    base: number,
    bytes: Buffer,
    failedSectors: Map<number, string>,
  ): void {
    try {
      this.#readGuarded(part, base, bytes);
    } catch (error) {
      const reason = expectedFailure(error);
      if (part.length <= SECTOR_SIZE) {
        failedSectors.set(part.offset / SECTOR_SIZE, reason);
        return;
      }
      const half = Math.ceil(part.length / 2 / SECTOR_SIZE) * SECTOR_SIZE;
      this.#readPart({ offset: part.offset, length: half }, base, bytes, failedSectors);
      this.#readPart(
        { offset: part.offset + half, length: part.length - half },
        base,
        bytes,
        failedSectors,
      );
    }
  }

  /** One read into the middle of a buffer, whose edges must stay as they were. */
  #readGuarded({ offset, length }: DeviceRange, base: number, bytes: Buffer): void {
    const target = this.#target.bytes;
    const before = target.subarray(0, SECTOR_SIZE);
    const after = target.subarray(SECTOR_SIZE + length, SECTOR_SIZE + length + SECTOR_SIZE);
    target.fill(GUARD, 0, length + 2 * SECTOR_SIZE);
    let failure: unknown;
    try {
      this.#chain.read(offset, length, this.#target, SECTOR_SIZE);
    } catch (error) {
      failure = error;
    }
    if (!isAll(before, GUARD) || !isAll(after, GUARD)) {
      throw new Error(`a read of ${length} bytes at ${offset} wrote outside its target`);
    }
    if (failure !== undefined) {
      throw failure;
    }
    bytes.set(target.subarray(SECTOR_SIZE, SECTOR_SIZE + length), offset - base);
  }
}

function isAll(bytes: Uint8Array, value: number): boolean {
  return Buffer.compare(bytes, Buffer.alloc(bytes.length, value)) === 0;
}

/**
 * The block status covers a range without gaps, and agrees with the content where it says zeros.
 * Returns the sectors that it calls compressed.
 */
function walkStatus(
  chain: BackingChain,
  content: { readonly offset: number; readonly bytes: Buffer },
): Set<number> {
  const compressed = new Set<number>();
  const walker = new BlockStatusWalker(chain);
  const status = new BlockStatus();
  const end = content.offset + content.bytes.length;
  let offset = content.offset;
  for (let count = 0; offset < end && count < STATUSES_MAX; count++) {
    try {
      walker.statusAt(offset, end - offset, status);
    } catch (error) {
      expectedFailure(error);
      offset += SECTOR_SIZE;
      continue;
    }
    if (!(status.length > 0 && status.length <= end - offset)) {
      throw new Error(`block status at ${offset} has length ${status.length} of ${end - offset}`);
    }
    if (status.zero) {
      const from = offset - content.offset;
      if (!isAll(content.bytes.subarray(from, from + status.length), 0)) {
        throw new Error(
          `block status at ${offset} says ${status.length} zeros, but others were read`,
        );
      }
    }
    if (status.compressed) {
      for (let sector = offset; sector < offset + status.length; sector += SECTOR_SIZE) {
        compressed.add(sector / SECTOR_SIZE);
      }
    }
    offset += status.length;
  }
  return compressed;
}
