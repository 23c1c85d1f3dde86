/** Changing the size of a QED disk. Source: QEMU, block/qed.c. */

import { CorruptionError, TsimgfsError } from "../../../errors.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { ENTRY_UNALLOCATED, ENTRY_ZERO, entryAt } from "../table-entry.ts";
import { NUMBER, WORD } from "./shared-state.ts";
import type { QedWriterContext } from "./writer-context.ts";

/** Tables are read in pieces of this many bytes. */
const PIECE_SIZE = 65536;

/**
 * Refuse sizes that the image cannot have.
 *
 * @param oldSize, newSize bytes
 * @throws {TsimgfsError} ENOTSUP: less than now; EFBIG: more than its tables can map
 */
export function checkResizable(
  { layout, storage }: QedWriterContext,
  oldSize: number,
  newSize: number,
): void {
  if (newSize < oldSize) {
    const reason = `is a QED image, which cannot shrink: its disk has ${oldSize} bytes, ${newSize} were asked for`;
    throw new TsimgfsError("ENOTSUP", storage.path, reason);
  }
  const { cluster_size, table_size } = layout.header;
  const limit = layout.tableEntries ** 2 * cluster_size;
  if (newSize > limit) {
    const reason = `a disk of ${newSize} bytes is more than its tables map, ${limit} bytes with clusters of ${cluster_size} bytes and tables of ${table_size}`;
    throw new TsimgfsError("EFBIG", storage.path, reason);
  }
}

/**
 * Refuse to grow over clusters that are there already: something else than us has left them behind the
 * end of the disk, and they would become visible. A session leaves none there.
 *
 * @throws {CorruptionError | StorageError}
 */
export function checkTail({ layout, storage, state }: QedWriterContext): void {
  if (state.isSet(WORD.tailChecked)) return;
  const { tableEntries, header } = layout;
  const l1 = new Int32Array(layout.l1);
  const piece = NativeBuffer.allocate(PIECE_SIZE);
  const words = new Int32Array(piece.bytes.buffer, piece.bytes.byteOffset, PIECE_SIZE / 4);
  const firstCluster = Math.ceil(state.get(NUMBER.virtualSize) / header.cluster_size);
  for (let index = Math.floor(firstCluster / tableEntries); index * 2 < l1.length; index++) {
    const table = entryAt(l1, index * 2);
    if (table === ENTRY_UNALLOCATED) continue;
    const start = Math.max(0, firstCluster - index * tableEntries) * 8;
    for (let at = start; at < tableEntries * 8; at += PIECE_SIZE) {
      const length = Math.min(PIECE_SIZE, tableEntries * 8 - at);
      storage.readAt(piece, 0, length, table + at);
      for (let word = 0; word < length / 4; word += 2) {
        if (entryAt(words, word) <= ENTRY_ZERO) continue;
        const reason = "has clusters behind the end of its disk, which would show if it grew";
        throw new CorruptionError(storage.path, reason, { offset: table + at + word * 4 });
      }
    }
  }
  state.raise(WORD.tailChecked);
}

/** Write a new size to the header, durably, and let all threads know. */
export function setVirtualSize(context: QedWriterContext, virtualSize: number): void {
  const { state, allocator, lock, headerWriter } = context;
  headerWriter.setVirtualSize(virtualSize);
  allocator.sync();
  lock.exclusively(() => {
    state.set(NUMBER.virtualSize, virtualSize);
    lock.bumpGeneration();
  });
}
