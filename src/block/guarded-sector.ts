/**
 * The first sector of a disk whose format was guessed: a guest must not turn it into an image, which the next
 * one who guesses would open with all that it refers to.
 */

import { TsimgfsError } from "../errors.ts";
import { MAGIC_SECTOR_SIZE, magicOf } from "../formats/image-magic.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { DataWriter } from "./data-extents.ts";
import type { TableChanges } from "./table-changes.ts";

export class GuardedSector {
  readonly #chain: BackingChain;
  readonly #data: DataWriter;
  readonly #changes: TableChanges;
  readonly #sector = NativeBuffer.allocate(MAGIC_SECTOR_SIZE);

  constructor(chain: BackingChain, data: DataWriter, changes: TableChanges) {
    this.#chain = chain;
    this.#data = data;
    this.#changes = changes;
  }

  /**
   * Write to the sector. Without the lock.
   *
   * @param guestOffset guestOffset + length <= MAGIC_SECTOR_SIZE
   * @throws {TsimgfsError} EPERM: the disk would look like an image; nothing is written
   */
  write(guestOffset: number, length: number, source: NativeBuffer, start: number): void {
    const sector = this.#sector;
    const { image } = this.#chain;
    const count = Math.min(MAGIC_SECTOR_SIZE, image.virtualSize);
    this.#changes.lockExclusive();
    try {
      this.#chain.read(0, count, sector, 0);
      sector.bytes.set(source.bytes.subarray(start, start + length), guestOffset);
      const magic = magicOf(sector.bytes.subarray(0, count));
      if (magic !== undefined) {
        const reason = `a write would make it look like a ${magic} image; state --format raw to allow that`;
        throw new TsimgfsError("EPERM", image.storage.path, reason);
      }
      this.#data.write(source, start, length, guestOffset, guestOffset);
    } finally {
      this.#changes.unlockExclusive();
    }
  }
}
