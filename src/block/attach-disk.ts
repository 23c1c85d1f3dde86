/** Attaching to the images that `openChain` opened, maybe in another thread. */

import type { FormatImage, ThreadResources } from "../formats/driver.ts";
import { attachImage } from "../formats/formats.ts";
import { LocalFile, type SharedFile } from "../storage/local-file.ts";
import type { CallProgress, WritableStorage } from "../storage/storage.ts";
import { AccessLock } from "../threads/access-lock.ts";
import { COUNTER, count } from "../threads/counters.ts";
import { UnlockedReads } from "../threads/unlocked-reads.ts";
import { BackingChain } from "./backing-chain.ts";
import { Disk } from "./disk.ts";
import type { SharedLayer } from "./open-chain.ts";
import type { DiskThread, SharedWriting, WritableFiles } from "./writing-parts.ts";

/** How a file of an image becomes one that a thread uses; tests put others in its place. */
export type AttachFile = (file: SharedFile, unlocked?: UnlockedReads) => WritableStorage;

/** Attach files, and count in which bytes holes are punched. */
function attachLocalFiles(counters?: Float64Array, progress?: CallProgress): AttachFile {
  const onPunch =
    counters && ((bytes: number): void => count(counters, COUNTER.punchedBytes, bytes));
  return (file, interlude) => new LocalFile(file, { onPunch, interlude, progress });
}

/** The images of a chain, and the files of the first one. */
function attach(
  layers: readonly SharedLayer[],
  resources: ThreadResources,
  attachFile: AttachFile,
  unlocked?: UnlockedReads,
): {
  images: readonly [FormatImage, ...FormatImage[]];
  files: WritableFiles;
} {
  const [top, ...below] = layers.map(({ file, dataFile, layout, key }) => {
    const storage = attachFile(file, unlocked);
    const dataStorage = dataFile && attachFile(dataFile, unlocked);
    return {
      image: attachImage(layout, { storage, dataStorage, key }, resources),
      files: { storage, dataStorage },
    };
  });
  if (top === undefined) throw new RangeError("a chain has at least one image");
  return { images: [top.image, ...below.map(({ image }) => image)], files: top.files };
}

/** A chain to read from. */
export function attachChain(
  layers: readonly SharedLayer[],
  resources: ThreadResources,
): BackingChain {
  return new BackingChain(attach(layers, resources, attachLocalFiles()).images);
}

/**
 * A disk to read from, and to write to if `writing` says how.
 *
 * @param thread of no other disk of the same image
 */
export function attachDisk(
  { layers, writing }: { layers: readonly SharedLayer[]; writing: SharedWriting | undefined },
  resources: ThreadResources,
  thread: DiskThread,
  attachFile: AttachFile = attachLocalFiles(thread.counters, thread.progress),
): Disk {
  const { counters } = thread;
  const unlocked = writing && new UnlockedReads(new AccessLock(writing.lock, thread.slot));
  const { images, files } = attach(layers, { ...resources, counters }, attachFile, unlocked);
  return writing === undefined
    ? Disk.readOnly(new BackingChain(images))
    : Disk.writable(images, { ...files, unlocked }, writing, thread);
}
