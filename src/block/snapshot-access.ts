/** Reading an internal snapshot of an image that is written to: the snapshot may be deleted meanwhile. */

import { TsimgfsError } from "../errors.ts";
import type { FormatImage } from "../formats/driver.ts";
import type { TableChanges } from "./table-changes.ts";

/** Keeps an image as it is while it is read. */
export interface ReadAccess {
  lockShared(): void;
  unlockShared(): void;
}

/** As the access to the image itself, as long as the snapshot is there. */
export class SnapshotAccess implements ReadAccess {
  readonly #changes: TableChanges;
  readonly #image: FormatImage;
  readonly #number: number;

  constructor(changes: TableChanges, image: FormatImage, number: number) {
    this.#changes = changes;
    this.#image = image;
    this.#number = number;
  }

  /** @throws {TsimgfsError} ESTALE: it was deleted, and its place may be that of others */
  lockShared(): void {
    this.#changes.lockShared();
    if (this.#image.hasSnapshot(this.#number)) return;
    this.#changes.unlockShared();
    throw new TsimgfsError("ESTALE", this.#image.storage.path, "the snapshot was deleted");
  }

  unlockShared(): void {
    this.#changes.unlockShared();
  }
}
