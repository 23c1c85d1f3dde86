/** The internal snapshots of an open image, by their numbers; where it is written to, they come and go. */

import assert from "node:assert";
import { TsimgfsError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import type { SnapshotInfo } from "../driver.ts";
import type { Qcow2Layout } from "./layout.ts";
import {
  type Qcow2Snapshot,
  readSnapshotTable,
  type SnapshotTableLocation,
} from "./snapshot-table.ts";
import type { SharedSnapshotTable } from "./snapshots/shared-snapshot-table.ts";

export class SnapshotLookup {
  readonly #layout: Qcow2Layout;
  readonly #storage: Storage;
  #shared: SharedSnapshotTable | undefined;

  constructor(layout: Qcow2Layout, storage: Storage) {
    this.#layout = layout;
    this.#storage = storage;
  }

  /** Look from now on where a writer has the table. */
  follow(shared: SharedSnapshotTable): void {
    this.#shared = shared;
  }

  /** In the order of the table. @param virtualSize of the disk, bytes */
  *list(virtualSize: number): Generator<SnapshotInfo> {
    let index = 0;
    for (const snapshot of readSnapshotTable(this.#location(virtualSize), this.#storage)) {
      const number = this.#shared?.numberAt(index) ?? index;
      index++;
      yield { ...snapshot, number };
    }
  }

  has(number: number): boolean {
    return this.#indexOf(number) >= 0;
  }

  /**
   * @param virtualSize of the disk, bytes
   * @throws {TsimgfsError} ESTALE: it was deleted
   */
  get(number: number, virtualSize: number): Qcow2Snapshot {
    const index = this.#indexOf(number);
    const offset =
      this.#shared?.entryOffset(index) ??
      new Float64Array(this.#layout.snapshotTable.offsets)[index];
    if (index < 0 || offset === undefined) {
      throw new TsimgfsError("ESTALE", this.#storage.path, "the snapshot was deleted");
    }
    const location = this.#location(virtualSize);
    const [snapshot] = readSnapshotTable(location, this.#storage, { index, offset });
    assert(snapshot !== undefined, `snapshot ${index}`);
    return snapshot;
  }

  /** Where the table is by now. */
  #location(virtualSize: number): SnapshotTableLocation {
    const shared = this.#shared;
    if (shared === undefined) return this.#layout;
    return {
      header: { nb_snapshots: shared.count, snapshots_offset: shared.offset },
      virtualSize,
    };
  }

  /** The place in the table, -1 if there is none. */
  #indexOf(number: number): number {
    if (this.#shared !== undefined) return this.#shared.indexOf(number);
    return number < this.#layout.header.nb_snapshots ? number : -1;
  }
}
