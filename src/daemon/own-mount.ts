/**
 * The place of a daemon's own mount. Somebody may mount something else there, on top of it or when it is gone: that
 * is not the daemon's to unmount.
 */

import { unmountWhileServing } from "../fuse/fusermount.ts";
import { MOUNT_TYPE, readAllMounts } from "../fuse/mount-table.ts";

/** here: it can be unmounted. covered: something else is mounted on top of it. gone: it is not there. */
export type MountPlace = "here" | "covered" | "gone";

export class OwnMount {
  /** Absolute, without symbolic links. */
  readonly path: string;
  readonly #isConnected: () => boolean;
  #device: string | undefined;

  /** @param isConnected whether the kernel has the file system: mounted somewhere, or with open files */
  constructor(path: string, isConnected: () => boolean) {
    this.path = path;
    this.#isConnected = isConnected;
  }

  /** It has just been made. */
  find(): void {
    const made = readAllMounts().findLast(
      ({ mountpoint, type }) => mountpoint === this.path && type === MOUNT_TYPE,
    );
    this.#device = made?.device;
  }

  /** `major:minor`; undefined: it was not made, or gone at once. */
  get device(): string | undefined {
    return this.#device;
  }

  get place(): MountPlace {
    const there = readAllMounts().filter(({ mountpoint }) => mountpoint === this.path);
    const isOurs = ({ device }: { device: string }): boolean => device === this.#device;
    if (!there.some(isOurs)) return "gone";
    // The kernel gives the number of a device that is gone to the next one: asked after the table was read.
    if (!this.#isConnected()) return "gone";
    return there.slice(-1).some(isOurs) ? "here" : "covered";
  }

  /**
   * Unmount it, if it is here, while this thread goes on.
   *
   * @throws {TsimgfsError} EBUSY, or what fusermount3 said
   */
  async unmount({ lazy }: { lazy: boolean }): Promise<void> {
    if (this.place === "here") await unmountWhileServing(this.path, { lazy });
  }
}
