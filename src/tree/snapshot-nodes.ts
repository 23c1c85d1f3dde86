/** The snapshots of one image in the tree: their directory, and a device for each that was ever seen. */

import type { Disk } from "../block/disk.ts";
import { CorruptionError, TsimgfsError } from "../errors.ts";
import type { SnapshotInfo } from "../formats/driver.ts";
import type { Device } from "./device.ts";
import { Directory, type DirectoryProperties } from "./directory.ts";
import { DEVICE_SUFFIX, snapshotFileNames } from "./names.ts";

/** Snapshots that a thread keeps attached; the one that was found first goes first. */
const KEPT_MAX = 64;

/** What there is, until the image's structure changes. */
interface SnapshotList {
  readonly generation: number;
  /** In the order of the image's table. */
  readonly numbers: readonly number[];
  /** Virtual sizes by number, bytes. */
  readonly sizes: ReadonlyMap<number, number>;
}

/** How a snapshot becomes a device. */
export type MakeSnapshotDevice = (snapshot: {
  readonly number: number;
  readonly virtualSize: number;
  readonly attach: () => Disk;
}) => Device;

export class SnapshotNodes {
  readonly #disk: Disk;
  readonly #makeDevice: MakeSnapshotDevice;
  readonly #devices = new Map<number, Device>();
  #list: SnapshotList | undefined;

  /** @param disk of the image */
  constructor(disk: Disk, makeDevice: MakeSnapshotDevice) {
    this.#disk = disk;
    this.#makeDevice = makeDevice;
  }

  /** The device of a snapshot; undefined if there is none any more. */
  node(number: number): Device | undefined {
    if (!this.#known().sizes.has(number)) return undefined;
    const device = this.#devices.get(number) ?? this.#make(number);
    const [oldest] = this.#devices.keys();
    if (oldest !== undefined && this.#devices.size >= KEPT_MAX) this.#devices.delete(oldest);
    this.#devices.set(number, device);
    return device;
  }

  directory(properties: Omit<DirectoryProperties, "isFixed">): Directory {
    const isFixed = !this.#disk.isWritable;
    return new Directory(
      { ...properties, isFixed },
      {
        names: () => {
          const names = this.#disk.inspect(() => snapshotFileNames(this.#read()));
          // Joined, not added: strings that were added keep their parts.
          return names.map((name) => [name, DEVICE_SUFFIX].join(""));
        },
        // Not kept: whoever lists a directory asks for every one.
        node: (index) => this.#make(this.#known().numbers[index] ?? -1),
        version: () => this.#disk.generation,
      },
    );
  }

  #known(): SnapshotList {
    const { generation } = this.#disk;
    if (this.#list?.generation === generation) return this.#list;
    const snapshots = this.#disk.inspect(() =>
      Array.from(this.#read(), ({ number, virtualSize }) => [number, virtualSize] as const),
    );
    const numbers = snapshots.map(([number]) => number);
    this.#list = { generation, numbers, sizes: new Map(snapshots) };
    return this.#list;
  }

  #read(): Iterable<SnapshotInfo> {
    return this.#disk.chain.image.readSnapshots();
  }

  #make(number: number): Device {
    // One that was deleted since it was listed is empty.
    const virtualSize = this.#known().sizes.get(number) ?? 0;
    return this.#makeDevice({ number, virtualSize, attach: () => this.#open(number) });
  }

  #open(number: number): Disk {
    try {
      return this.#disk.openSnapshot(number);
    } catch (cause) {
      if (cause instanceof TsimgfsError && cause.code === "ESTALE") throw cause;
      // The image is open: a bad snapshot is an I/O error of whoever reads it.
      const reason = cause instanceof Error ? cause.message : String(cause);
      const { path } = this.#disk.chain.image.storage;
      throw new CorruptionError(path, `snapshot ${number}: ${reason}`, { cause });
    }
  }
}
