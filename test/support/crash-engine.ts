/** Opens disks of the engine for writing: on files as they are, or on recordings that stand in for them. */

import { join } from "node:path";
import { attachDisk } from "../../src/block/attach-disk.ts";
import type { Disk } from "../../src/block/disk.ts";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import type { WritePolicy } from "../../src/block/write-policy.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { readLayout, repairBeforeWriting } from "../../src/formats/formats.ts";
import { LocalFile, type SharedFile } from "../../src/storage/local-file.ts";
import type { WritableStorage } from "../../src/storage/storage.ts";
import { IMAGE_NAME, imageFiles } from "./crash-images.ts";
import type { ImageRecipe } from "./crash-recipes.ts";
import { PASSPHRASE } from "./encrypted-image.ts";
import type { SparseFile } from "./recording-sparse-file.ts";
import { type FaultHook, type RecordingLog, RecordingStorage } from "./recording-storage.ts";

export interface OpenDisk {
  readonly disk: Disk;
  /** Closes the files; before that, `disk.close` ends the work in order. */
  closeFiles(): void;
}

export const USUAL_POLICY: WritePolicy = {
  detectZeroes: "on",
  discard: "unmap",
  growable: false,
  copyOnRead: true,
};

/** The passphrases that open the image of a recipe. */
export function secretsOf({ encryption }: ImageRecipe): Buffer[] {
  return encryption === undefined ? [] : [Buffer.from(PASSPHRASE)];
}

const THREAD = { slot: 0, requestMaintenance: undefined } as const;

function openFiles(
  directory: string,
  recipe: ImageRecipe,
  policy: WritePolicy,
): ReturnType<typeof openChain> {
  return openChain(join(directory, IMAGE_NAME), {
    format: recipe.format,
    backingPolicy: "any",
    forceShare: false,
    secrets: secretsOf(recipe),
    writing: { policy, threads: 1 },
  });
}

/** Opens the image in a directory. */
export function openLocal(directory: string, recipe: ImageRecipe, policy: WritePolicy): OpenDisk {
  const chain = openFiles(directory, recipe, policy);
  const disk = attachDisk(chain, { clusterCache: new ClusterCache() }, THREAD);
  return { disk, closeFiles: () => closeChain(chain) };
}

/**
 * Opens the image in a directory on recordings. What an earlier crash left behind is repaired in the
 * recording, as `openChain` does it.
 *
 * @param files what the image, and its data file, contain; changed from now on
 * @param faultOf lets calls fail once the image is open
 */
export function openRecorded(
  directory: string,
  recipe: ImageRecipe,
  policy: WritePolicy,
  files: readonly SparseFile[],
  log: RecordingLog,
  faultOf?: FaultHook,
): OpenDisk {
  const paths = imageFiles(directory, recipe);
  const record = (index: number, hook?: FaultHook): RecordingStorage | undefined => {
    const [path, content] = [paths[index], files[index]];
    return path === undefined || content === undefined
      ? undefined
      : new RecordingStorage(path, content, log, index, hook);
  };
  const image = record(0);
  if (image === undefined) throw new RangeError("no image");
  const options = { tableCacheMax: 1024 * 1024, keepsL1: true };
  repairBeforeWriting(readLayout(recipe.format, image, options), image);
  paths.forEach((path, index) => {
    files[index]?.save(path);
  });
  const chain = openFiles(directory, recipe, policy);
  const attachFile = (file: SharedFile): WritableStorage =>
    record(paths.indexOf(file.path), faultOf) ?? new LocalFile(file);
  const disk = attachDisk(chain, { clusterCache: new ClusterCache() }, THREAD, attachFile);
  return { disk, closeFiles: () => closeChain(chain) };
}

/** Opens an image that a crash left in a directory, and closes it in order: what is left over is cleared. */
export function recoverInPlace(directory: string, recipe: ImageRecipe): void {
  const { disk, closeFiles } = openLocal(directory, recipe, USUAL_POLICY);
  try {
    disk.close();
  } finally {
    closeFiles();
  }
}
