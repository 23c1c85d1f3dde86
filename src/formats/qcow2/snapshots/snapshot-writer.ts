/** Internal snapshots of a qcow2 image: made, applied and deleted. Source: qcow2 specification, "Snapshots"; QEMU's rules. */

import { FormatError, StorageError, TsimgfsError, UnsupportedError } from "../../../errors.ts";
import type { NewSnapshot, SnapshotWriter } from "../../writer.ts";
import { L1_SIZE_MAX, SNAPSHOTS_MAX } from "../header.ts";
import { type Qcow2Snapshot, readSnapshotTable, SNAPSHOT_NAME_MAX } from "../snapshot-table.ts";
import { NUMBER } from "../writer/shared-state.ts";
import type { Qcow2WriterContext } from "../writer/writer-context.ts";
import { withEntry, withoutEntry } from "./new-snapshot-table.ts";
import { type StructureChange, StructureSwitch } from "./structure-switch.ts";
import type { L1Place } from "./table-tree.ts";

export class Qcow2SnapshotWriter implements SnapshotWriter {
  readonly #context: Qcow2WriterContext;

  constructor(context: Qcow2WriterContext) {
    this.#context = context;
  }

  create({ name, seconds, nanoseconds }: NewSnapshot): void {
    const { storage, state, snapshots } = this.#context;
    if (snapshots.count >= SNAPSHOTS_MAX) {
      const reason = `has ${snapshots.count} snapshots, which is the limit`;
      throw new StorageError("EFBIG", storage.path, reason);
    }
    const bytes = Buffer.byteLength(name);
    if (bytes > SNAPSHOT_NAME_MAX || name.includes("\0")) {
      const reason = `a snapshot's name has at most ${SNAPSHOT_NAME_MAX} bytes, and no NUL; this one has ${bytes}`;
      throw new TsimgfsError("EINVAL", storage.path, reason);
    }
    this.#switch(() => {
      const l1 = this.#activeL1();
      const virtualSize = state.get(NUMBER.virtualSize);
      const entry = { id: this.#newId(), name, l1, seconds, nanoseconds, virtualSize };
      return {
        trees: [{ l1, references: 1 }],
        active: l1,
        l1Entries: l1.entries,
        virtualSize,
        snapshotTable: withEntry(snapshots, storage, entry),
        droppedL1: undefined,
        oldL1: "kept",
      };
    });
  }

  apply(number: number): void {
    const { storage, layout } = this.#context;
    if (layout.extensions.bitmaps !== undefined) {
      const reason = "has bitmaps, which would not know what changes; remove them first";
      throw new UnsupportedError(storage.path, reason);
    }
    this.#switch(() => {
      const { snapshot } = this.#find(number);
      const l1 = { offset: snapshot.l1TableOffset, entries: snapshot.l1Entries };
      const { virtualSize } = snapshot;
      const needed = Math.ceil(virtualSize / (layout.clusterSize * layout.l2Entries));
      if (needed * 8 > L1_SIZE_MAX) {
        const reason = `the snapshot's size, ${virtualSize} bytes, exceeds the limit`;
        throw new FormatError(storage.path, reason);
      }
      return {
        trees: [
          { l1, references: 1 },
          { l1: this.#activeL1(), references: -1 },
        ],
        active: l1,
        l1Entries: Math.max(l1.entries, needed),
        virtualSize,
        snapshotTable: undefined,
        droppedL1: undefined,
        oldL1: "dropped",
      };
    });
  }

  delete(number: number): void {
    const { storage, state, snapshots } = this.#context;
    this.#switch(() => {
      const { snapshot, index } = this.#find(number);
      const l1 = { offset: snapshot.l1TableOffset, entries: snapshot.l1Entries };
      const active = this.#activeL1();
      return {
        trees: [{ l1, references: -1 }],
        active,
        l1Entries: active.entries,
        virtualSize: state.get(NUMBER.virtualSize),
        snapshotTable: withoutEntry(snapshots, storage, index),
        droppedL1: l1,
        oldL1: "dropped",
      };
    });
  }

  /** Do what a change says; what is to be freed is freed before, so that no refcount is too high. */
  #switch(change: () => StructureChange): void {
    const { allocator, headerWriter, layout, storage } = this.#context;
    if (layout.dataFile !== undefined) {
      const reason = "has an external data file, which snapshots cannot share";
      throw new UnsupportedError(storage.path, reason);
    }
    headerWriter.renew();
    allocator.flush();
    allocator.maintain();
    allocator.changeHeader(() => new StructureSwitch(this.#context, change()).run());
  }

  #activeL1(): L1Place {
    const { state } = this.#context;
    return { offset: state.get(NUMBER.l1Offset), entries: state.get(NUMBER.l1Size) };
  }

  *#entries(): Generator<Qcow2Snapshot> {
    const { storage, state, snapshots } = this.#context;
    const header = { nb_snapshots: snapshots.count, snapshots_offset: snapshots.offset };
    yield* readSnapshotTable({ header, virtualSize: state.get(NUMBER.virtualSize) }, storage);
  }

  #find(number: number): { snapshot: Qcow2Snapshot; index: number } {
    const index = this.#context.snapshots.indexOf(number);
    let at = 0;
    for (const snapshot of this.#entries()) if (at++ === index) return { snapshot, index };
    throw new TsimgfsError("ENOENT", this.#context.storage.path, "the snapshot is gone");
  }

  /** As QEMU: one more than the highest id that is a number. */
  #newId(): string {
    let highest = 0;
    for (const { id } of this.#entries()) {
      const number = Number.parseInt(id, 10);
      if (Number.isSafeInteger(number)) highest = Math.max(highest, number);
    }
    return String(highest + 1);
  }
}
