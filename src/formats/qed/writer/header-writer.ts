/**
 * Changes of header fields in place, each of 8 bytes within the first sector, so that it happens whole or
 * not at all. All other bytes stay as they are.
 */

import { offsetOf } from "../../../binary/struct.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { FEATURE, HEADER } from "../header.ts";

const FIELD_SIZE = 8;
type WrittenField = "features" | "autoclear_features" | "image_size";

export class HeaderWriter {
  readonly #storage: WritableStorage;
  readonly #field = NativeBuffer.allocate(FIELD_SIZE);

  constructor(storage: WritableStorage) {
    this.#storage = storage;
  }

  /** Clear all autoclear bits: none is known. Returns whether any was set. */
  clearAutoclear(): boolean {
    if (this.#read("autoclear_features") === 0n) return false;
    this.#write("autoclear_features", 0n);
    return true;
  }

  setNeedCheck(value: boolean): void {
    const features = this.#read("features");
    const { needCheck } = FEATURE;
    this.#write("features", value ? features | needCheck : features & ~needCheck);
  }

  setVirtualSize(size: number): void {
    this.#write("image_size", BigInt(size));
  }

  #read(name: WrittenField): bigint {
    this.#storage.readAt(this.#field, 0, FIELD_SIZE, offsetOf(HEADER, name));
    return this.#field.view.getBigUint64(0, true);
  }

  #write(name: WrittenField, value: bigint): void {
    this.#field.view.setBigUint64(0, value, true);
    this.#storage.writeAt(this.#field, 0, FIELD_SIZE, offsetOf(HEADER, name));
  }
}
