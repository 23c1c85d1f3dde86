/** Making, applying and deleting internal snapshots of a disk. */

import { UnsupportedError } from "../errors.ts";
import type { FormatImage } from "../formats/driver.ts";
import type { FormatWriter, SnapshotWriter } from "../formats/writer.ts";
import { findNamedSnapshot, findSnapshot } from "./find-snapshot.ts";
import type { TableChanges } from "./table-changes.ts";

const NANOSECONDS_PER_MS = 1_000_000;
const MS_PER_SECOND = 1000;

/** What can be done with snapshots. */
export type SnapshotAction = "create" | "apply" | "delete";

/** The snapshots of a disk that is written to, in one thread. */
export class DiskSnapshots {
  readonly #image: FormatImage;
  readonly #writer: FormatWriter;
  readonly #changes: TableChanges;

  constructor(image: FormatImage, writer: FormatWriter, changes: TableChanges) {
    this.#image = image;
    this.#writer = writer;
    this.#changes = changes;
  }

  /**
   * Do something with a snapshot, as a whole or not at all; durably. As qemu-img, who applies one may say
   * its id, and who deletes one its name only.
   *
   * @throws {TsimgfsError} nothing has changed
   */
  change(action: SnapshotAction, name: string): void {
    const { snapshots } = this.#writer;
    if (snapshots === undefined) {
      const reason = `is a ${this.#image.format} image, which has no internal snapshots`;
      throw new UnsupportedError(this.#image.storage.path, reason);
    }
    this.#changes.alone(() => {
      // What another thread has changed is known from here on, and nobody changes more.
      this.#changes.lockShared();
      this.#changes.unlockShared();
      switch (action) {
        case "create":
          this.#create(snapshots, name);
          break;
        case "apply": {
          const number = findSnapshot(this.#image, name);
          this.#writer.begin("places");
          snapshots.apply(number);
          break;
        }
        case "delete": {
          const number = findNamedSnapshot(this.#image, name);
          this.#writer.begin("places");
          snapshots.delete(number);
          break;
        }
      }
    });
  }

  #create(snapshots: SnapshotWriter, name: string): void {
    this.#writer.begin("places");
    const now = Date.now();
    snapshots.create({
      name,
      seconds: Math.floor(now / MS_PER_SECOND),
      nanoseconds: (now % MS_PER_SECOND) * NANOSECONDS_PER_MS,
    });
  }
}
