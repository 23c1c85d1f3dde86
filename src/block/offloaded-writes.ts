/**
 * Writing bytes of another file of the host without reading them: the host copies them, or shares their
 * blocks, where it can. What it cannot do is left to the caller.
 */

import { MAGIC_SECTOR_SIZE } from "../formats/image-magic.ts";
import type { FormatWriter } from "../formats/writer.ts";
import { HostPlace } from "../formats/writer.ts";
import type { Storage, WritableStorage } from "../storage/storage.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { DataWriter } from "./data-extents.ts";
import type { DiskWriter } from "./disk-writer.ts";
import type { TableChanges } from "./table-changes.ts";

export interface OffloadedWritesContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly data: DataWriter;
  readonly dataStorage: WritableStorage;
  readonly changes: TableChanges;
  /** Gives clusters their places. */
  readonly diskWriter: DiskWriter;
  readonly guardsMagic: boolean;
}

export class OffloadedWrites {
  readonly #context: OffloadedWritesContext;
  readonly #place = new HostPlace();

  constructor(context: OffloadedWritesContext) {
    this.#context = context;
  }

  /** As Disk.copyFrom. */
  write(guestOffset: number, length: number, source: Storage, sourceOffset: number): number {
    const { chain, writer, data, dataStorage, diskWriter, guardsMagic } = this.#context;
    if (data.isEncrypted || dataStorage.copyFrom === undefined) return 0;
    if (guardsMagic && guestOffset < MAGIC_SECTOR_SIZE) return 0;
    writer.begin("contents");
    writer.dirtyBitmaps?.mark(guestOffset, length);
    // Over a backing file, a place would first get what shows there now.
    if (chain.images.length === 1) diskWriter.preallocate(guestOffset, length, "metadata");
    let done = 0;
    while (done < length) {
      const count = this.#copyInPlace(
        guestOffset + done,
        length - done,
        source,
        sourceOffset + done,
      );
      if (count === 0) break;
      done += count;
    }
    return done;
  }

  #copyInPlace(guestOffset: number, length: number, source: Storage, sourceOffset: number): number {
    const { changes, writer, dataStorage } = this.#context;
    changes.lockShared();
    try {
      const count = writer.mapInPlace(guestOffset, length, this.#place);
      if (count === 0) return 0;
      return dataStorage.copyFrom?.(source, sourceOffset, this.#place.hostOffset, count) ?? 0;
    } finally {
      changes.unlockShared();
    }
  }
}
