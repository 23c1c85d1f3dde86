/** The extended attributes `user.tsimgfs.snapshot.…` of a device, which take the name of a snapshot. */

import type { Disk } from "../block/disk.ts";
import type { SnapshotAction } from "../block/snapshots.ts";
import { TsimgfsError } from "../errors.ts";
import type { StreamState } from "../threads/stream-state.ts";
import type { DeviceOpens } from "./device-opens.ts";

export const SNAPSHOT_XATTRS: Readonly<Record<SnapshotAction, string>> = {
  create: "user.tsimgfs.snapshot.create",
  apply: "user.tsimgfs.snapshot.apply",
  delete: "user.tsimgfs.snapshot.delete",
};

export interface SnapshotControlContext {
  readonly disk: Disk;
  readonly opens: DeviceOpens;
  /** Lets the kernel forget all pages of the device, while nobody has it open. */
  readonly dropPages: () => void;
  readonly stream: StreamState;
}

/** The snapshots of one device, as one thread sees them. */
export class SnapshotControl {
  readonly #context: SnapshotControlContext;

  constructor(context: SnapshotControlContext) {
    this.#context = context;
  }

  /**
   * Do something with a snapshot. It is done when this returns.
   *
   * @throws {TsimgfsError} EBUSY: the device is open, or streamed; or as DiskSnapshots.change
   */
  command(action: SnapshotAction, name: string): void {
    const { disk, stream } = this.#context;
    if (action === "create" && (stream.name === "running" || stream.name === "paused")) {
      throw this.#busy("is streamed: a snapshot would need what it is to do without");
    }
    if (action === "apply") this.#apply(name);
    else disk.changeSnapshots(action, name);
  }

  /** Whoever has the device open would see it change under his feet. */
  #apply(name: string): void {
    const { disk, opens, dropPages } = this.#context;
    const isDone = opens.alone(() => {
      disk.changeSnapshots("apply", name);
      // Not left to the next open: others may open the device, and read, before the kernel has done it for that one.
      dropPages();
    });
    if (!isDone) throw this.#busy("is open: a snapshot is applied to what nobody uses");
  }

  #busy(reason: string): TsimgfsError {
    return new TsimgfsError("EBUSY", this.#context.disk.chain.image.storage.path, reason);
  }
}
