/** Raw images: the file is the disk. */

import assert from "node:assert";
import type { Storage } from "../../storage/storage.ts";
import {
  EXTENT,
  type Extent,
  type FormatDescription,
  type FormatImage,
  type SnapshotInfo,
} from "../driver.ts";

/** The unit of a raw disk, bytes. */
const SECTOR_SIZE = 512;

/** Nothing needs to be known of a raw image but its length. */
export interface RawLayout {
  readonly format: "raw";
}

/** As QEMU: a file that ends within a sector is shown up to the end of the sector, zero padded. */
function wholeSectors(length: number): number {
  return Math.ceil(length / SECTOR_SIZE) * SECTOR_SIZE;
}

export class RawImage implements FormatImage {
  readonly format = "raw";
  readonly storage: Storage;
  readonly dataStorage: Storage;
  virtualSize: number;
  readonly clusterSize = SECTOR_SIZE;
  readonly backingFile = undefined;
  readonly encrypted = false;
  readonly cipher = undefined;

  constructor(storage: Storage) {
    this.storage = storage;
    this.dataStorage = storage;
    this.virtualSize = wholeSectors(storage.length);
  }

  /** Take over another length of the file. */
  adopt(length: number): void {
    this.virtualSize = wholeSectors(length);
  }

  mapExtent(guestOffset: number, maxLength: number, out: Extent): void {
    out.kind = EXTENT.data;
    out.hostOffset = guestOffset;
    out.length = Math.min(maxLength, this.virtualSize - guestOffset);
    out.compressedBytes = 0;
  }

  mayHaveHostHoles(): boolean {
    return true;
  }

  readCompressed(): never {
    assert.fail("raw images have no compressed clusters");
  }

  readSnapshots(): Iterable<SnapshotInfo> {
    return [];
  }

  hasSnapshot(): boolean {
    return false;
  }

  openSnapshot(): never {
    assert.fail("raw images have no snapshots");
  }

  describe(): FormatDescription {
    return {
      clusterSize: undefined,
      encrypted: false,
      dirty: false,
      snapshots: [],
      specific: undefined,
    };
  }
}
