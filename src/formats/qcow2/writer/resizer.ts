/** Changing the size of a qcow2 disk, and the place of its L1 table. Source: QEMU, block/qcow2.c. */

import { TsimgfsError } from "../../../errors.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { L1_SIZE_MAX } from "../header.ts";
import { NUMBER, WORD } from "./shared-state.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

/**
 * Refuse images whose snapshots would change with the disk.
 *
 * @throws {TsimgfsError}
 */
export function checkResizable({ layout, storage, snapshots }: Qcow2WriterContext): void {
  if (layout.header.version >= 3 || snapshots.count === 0) return;
  const reason = "has snapshots that do not say their size (version 2): it cannot be resized";
  throw new TsimgfsError("ENOTSUP", storage.path, reason);
}

/**
 * Make the L1 table long enough for a size: a larger copy at another place, which the header refers to
 * when it is durable. No table may change meanwhile.
 *
 * @throws {TsimgfsError} EFBIG: the format cannot have that size
 */
export function growL1Table(context: Qcow2WriterContext, virtualSize: number): void {
  const { layout, state, storage } = context;
  const { clusterSize, l2Entries } = layout;
  const needed = Math.ceil(virtualSize / (clusterSize * l2Entries));
  const oldSize = state.get(NUMBER.l1Size);
  if (needed <= oldSize) return;
  if (needed * 8 > L1_SIZE_MAX) {
    const reason = `a size of ${virtualSize} needs an L1 table of more than ${L1_SIZE_MAX} bytes`;
    throw new TsimgfsError("EFBIG", storage.path, reason);
  }
  try {
    moveL1Table(context, needed);
  } catch (error) {
    // Wherever it stopped: clusters are counted that nothing refers to.
    state.raise(WORD.leaks);
    throw error;
  }
}

function moveL1Table(context: Qcow2WriterContext, needed: number): void {
  const { layout, state, storage, allocator } = context;
  const { clusterSize } = layout;
  const oldSize = state.get(NUMBER.l1Size);
  const clusters = Math.ceil((needed * 8) / clusterSize);
  const offset = allocator.allocateArea(clusters) * clusterSize;
  const oldOffset = state.get(NUMBER.l1Offset);
  // Zeroed: what lies past the entries that there were refers to nothing.
  const table = NativeBuffer.allocate(clusters * clusterSize);
  storage.readAt(table, 0, oldSize * 8, oldOffset);
  storage.writeAt(table, 0, table.length, offset);
  allocator.marks.sync();
  context.headerWriter.setL1Table(offset, needed);
  // From here on the file says so: what is not durable yet keeps the old table from being freed.
  context.lock.exclusively(() => {
    context.tableCache.invalidate(offset, clusters * clusterSize);
    state.set(NUMBER.l1Offset, offset);
    state.set(NUMBER.l1Size, needed);
    allocator.frees.add(oldOffset / clusterSize, Math.ceil((oldSize * 8) / clusterSize));
    allocator.frees.publish();
    context.lock.bumpGeneration();
  });
  allocator.marks.sync();
}

/** Write a new size to the header, durably, and let all threads know. */
export function setVirtualSize(context: Qcow2WriterContext, virtualSize: number): void {
  const { state, allocator, lock, layout, dataStorage } = context;
  const old = state.get(NUMBER.virtualSize);
  const resizeDataFile = (): void => {
    if (layout.dataFile !== undefined && dataStorage.resizable) dataStorage.setLength(virtualSize);
  };
  // The data file is never shorter than the disk.
  if (virtualSize > old) {
    resizeDataFile();
    allocator.marks.sync(dataStorage);
  }
  context.headerWriter.setVirtualSize(virtualSize);
  allocator.marks.sync();
  if (virtualSize < old) resizeDataFile();
  lock.exclusively(() => {
    state.set(NUMBER.virtualSize, virtualSize);
    lock.bumpGeneration();
  });
}
