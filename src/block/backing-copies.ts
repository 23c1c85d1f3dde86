/** Copying what an image lacks from its backing files, whether anybody reads it or not, in one thread. */

import assert from "node:assert";
import type { CopyOnRead } from "./copy-on-read.ts";
import type { TableChanges } from "./table-changes.ts";

export class BackingCopies {
  readonly #copier: CopyOnRead | undefined;
  readonly #changes: TableChanges | undefined;

  /** Both undefined: the disk is read-only; only the first: it has no backing file. */
  constructor(copier: CopyOnRead | undefined, changes: TableChanges | undefined) {
    this.#copier = copier;
    this.#changes = changes;
  }

  /** Bytes that `copy` has copied. */
  get copied(): number {
    return this.#copier?.copied ?? 0;
  }

  /**
   * Copy the start of a range from images below into the image.
   *
   * @param bottom index in the chain of the first image that is not copied from
   * @returns bytes from `guestOffset` on that are done: copied, there before, or not to be copied
   * @throws {CorruptionError | StorageError} they cannot be read, or stored
   */
  copy(guestOffset: number, length: number, bottom: number): number {
    return this.#required().copy(guestOffset, length, bottom);
  }

  /**
   * Copy the start of a range that the image lacks, also what reads as zeros.
   *
   * @returns bytes that are done
   * @throws {CorruptionError | StorageError} they cannot be read, or stored
   */
  copyMissing(guestOffset: number, length: number): number {
    return this.#required().copyMissing(guestOffset, length);
  }

  /**
   * Let tables refer to all copies that wait, in all threads: until then, what was copied is lost if the disk is
   * closed, or the process ends.
   *
   * @throws {TsimgfsError} some still wait
   */
  link(): void {
    this.#changes?.linkCopies();
  }

  #required(): CopyOnRead {
    assert(this.#copier !== undefined, "the disk is read-only, or has no backing file");
    return this.#copier;
  }
}
