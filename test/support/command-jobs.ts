/** What `tsimgfs commit`, `rebase` and `stream` do with disks, in their order, on files that a test puts in the places of the images. */

import { type AttachFile, attachDisk } from "../../src/block/attach-disk.ts";
import { CommitJob } from "../../src/block/commit-job.ts";
import type { Disk } from "../../src/block/disk.ts";
import { closeChain, type OpenChain, openChain } from "../../src/block/open-chain.ts";
import { RebaseJob } from "../../src/block/rebase-job.ts";
import { StreamJob } from "../../src/block/stream-job.ts";
import type { WritePolicy } from "../../src/block/write-policy.ts";
import { PLAIN_WRITING } from "../../src/cli/offline-disk.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { readLayout, repairBeforeWriting, setBackingFile } from "../../src/formats/formats.ts";
import { LocalFile, type SharedFile } from "../../src/storage/local-file.ts";
import type { WritableStorage } from "../../src/storage/storage.ts";
import type { ImageFormat } from "./qemu.ts";

const RESOURCES = { clusterCache: new ClusterCache() };
const THREAD = { slot: 0, requestMaintenance: undefined } as const;
/** Of the base, as the command has it. */
const BASE_POLICY: WritePolicy = { ...PLAIN_WRITING, detectZeroes: "unmap", growable: true };

export interface CommitPlan {
  /** The image that is committed. */
  readonly path: string;
  readonly format: ImageFormat;
  /** An image further below; default: the first backing file. */
  readonly base?: string;
  /** It is not emptied. */
  readonly isKept?: boolean;
}

/** Commits an image. Its files are closed whatever happens. */
export function commitImage(plan: CommitPlan, attachFile: AttachFile): void {
  const { path, format, base, isKept = false } = plan;
  const chain = openChain(path, {
    ...{ format, backingPolicy: "any", forceShare: false },
    writing: isKept ? undefined : { policy: PLAIN_WRITING, threads: 1 },
    base: { path: base, writing: { policy: BASE_POLICY, threads: 1 } },
  });
  try {
    commitChain(chain, attachFile);
  } finally {
    closeChain(chain);
  }
}

function commitChain({ layers, writing, base }: OpenChain, attachFile: AttachFile): void {
  if (base === undefined) throw new RangeError("the chain was opened without a base");
  const top = { layers: layers.slice(0, base.index), writing };
  const above = attachDisk(top, RESOURCES, THREAD, attachFile);
  const bottom = { layers: layers.slice(base.index), writing: base.writing };
  const below = attachDisk(bottom, RESOURCES, THREAD, attachFile);
  try {
    const job = new CommitJob(above, below);
    while (!job.step()) below.flush();
  } finally {
    below.close();
  }
  if (!above.isWritable) return;
  try {
    for (let done = 0; above.canDeallocate && done < above.virtualSize; ) {
      done += above.deallocate(done, above.virtualSize - done);
    }
  } finally {
    above.close();
  }
}

export interface NewBacking {
  readonly path: string;
  readonly format: ImageFormat;
  readonly name: string;
}

export interface RebasePlan {
  readonly path: string;
  readonly format: ImageFormat;
  /** The new backing file, and its name as it is stored; undefined: none any more. */
  readonly backing: NewBacking | undefined;
  readonly compress?: boolean;
}

/**
 * Rebases the image of an open disk, and ends writing.
 *
 * @param storageOf the image's file, when nobody else uses it any more
 */
export function rebaseDisk(
  disk: Disk,
  { path, format, backing, compress = false }: RebasePlan,
  storageOf: () => WritableStorage,
  attachFile?: AttachFile,
): void {
  const below =
    backing &&
    openChain(backing.path, {
      ...{ format: backing.format, backingPolicy: "any", forceShare: false, overlay: path },
    });
  try {
    const shown =
      below && attachDisk({ ...below, writing: undefined }, RESOURCES, THREAD, attachFile).chain;
    const shared = disk.chain.images.length;
    try {
      const job = new RebaseJob(disk, shown, { compress, shared });
      while (!job.step()) disk.flush();
    } finally {
      disk.close();
    }
    setBackingFile(format, storageOf(), backing);
  } finally {
    if (below !== undefined) closeChain(below);
  }
}

/** Opens an image to be written to, with its chain. Its files are closed whatever happens. */
function withImage(
  { path, format }: RebasePlan,
  attachFile: AttachFile,
  body: (disk: Disk, storageOf: () => WritableStorage) => void,
): void {
  const chain = openChain(path, {
    ...{ format, backingPolicy: "any", forceShare: false },
    writing: { policy: PLAIN_WRITING, threads: 1 },
  });
  try {
    const [top] = chain.layers;
    if (top === undefined) throw new RangeError("a chain has at least one image");
    const disk = attachDisk(chain, RESOURCES, THREAD, attachFile);
    body(disk, () => currentStorage(top.file, attachFile));
  } finally {
    closeChain(chain);
  }
}

/** Rebases an image. */
export function rebaseImage(plan: RebasePlan, attachFile: AttachFile): void {
  withImage(plan, attachFile, (disk, storageOf) => rebaseDisk(disk, plan, storageOf, attachFile));
}

/** Streams an image: it gets all that its backing files have. */
export function streamImage(plan: RebasePlan, attachFile: AttachFile): void {
  withImage(plan, attachFile, (disk, storageOf) => {
    try {
      const job = new StreamJob(disk, disk.chain.images.length);
      while (!job.step()) disk.flush();
    } finally {
      disk.close();
    }
    setBackingFile(plan.format, storageOf(), undefined);
  });
}

/** A file with the length that it has by now. */
function currentStorage(file: SharedFile, attachFile: AttachFile): WritableStorage {
  return attachFile({ ...file, length: attachFile(file).currentLength() });
}

/** Changes the name of the backing file of an image, and nothing else. Its file is closed whatever happens. */
export function renameBacking({ path, format, backing }: RebasePlan, attachFile: AttachFile): void {
  const file = LocalFile.open(path, "read-write");
  try {
    const storage = attachFile(file.share());
    const options = { tableCacheMax: 0, keepsL1: false };
    repairBeforeWriting(readLayout(format, storage, options), storage);
    setBackingFile(format, currentStorage(file.share(), attachFile), backing);
  } finally {
    file.close();
  }
}
