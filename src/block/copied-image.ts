/**
 * An image as it is with copies that its tables do not refer to yet: whoever maps it takes them for what
 * they will be.
 */

import {
  EXTENT,
  type Extent,
  type FormatDescription,
  type FormatImage,
  type SnapshotInfo,
} from "../formats/driver.ts";
import type { Storage } from "../storage/storage.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { PendingCopies } from "./pending-copies.ts";

export class CopiedImage implements FormatImage {
  readonly format: FormatImage["format"];
  readonly storage: Storage;
  readonly dataStorage: Storage;
  readonly clusterSize: number;
  readonly backingFile: FormatImage["backingFile"];
  readonly encrypted: boolean;
  readonly cipher: FormatImage["cipher"];
  readonly #image: FormatImage;
  readonly #copies: PendingCopies;

  constructor(image: FormatImage, copies: PendingCopies) {
    this.format = image.format;
    this.storage = image.storage;
    this.dataStorage = image.dataStorage;
    this.clusterSize = image.clusterSize;
    this.backingFile = image.backingFile;
    this.encrypted = image.encrypted;
    this.cipher = image.cipher;
    this.#image = image;
    this.#copies = copies;
  }

  get virtualSize(): number {
    return this.#image.virtualSize;
  }

  mapExtent(guestOffset: number, maxLength: number, out: Extent): void {
    this.#image.mapExtent(guestOffset, maxLength, out);
    if (out.kind === EXTENT.unallocated && this.#copies.count > 0) {
      this.#copies.resolve(guestOffset, out);
    }
  }

  mayHaveHostHoles(): boolean {
    return this.#image.mayHaveHostHoles();
  }

  readCompressed(
    extent: Extent,
    target: NativeBuffer,
    start: number,
    skip: number,
    length: number,
  ): void {
    this.#image.readCompressed(extent, target, start, skip, length);
  }

  readSnapshots(): Iterable<SnapshotInfo> {
    return this.#image.readSnapshots();
  }

  openSnapshot(number: number): FormatImage {
    return this.#image.openSnapshot(number);
  }

  hasSnapshot(number: number): boolean {
    return this.#image.hasSnapshot(number);
  }

  describe(): FormatDescription {
    return this.#image.describe();
  }
}
