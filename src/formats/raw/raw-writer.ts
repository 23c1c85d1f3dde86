/** Changing a raw image: every byte has its place already. */

import assert from "node:assert";
import type { WritableStorage } from "../../storage/storage.ts";
import type { AccessLock } from "../../threads/access-lock.ts";
import type { FormatWriter, HostPlace, WritePlan, ZeroProgress, ZeroSpace } from "../writer.ts";
import { ALLOCATION } from "../writer.ts";
import type { RawImage } from "./raw-image.ts";

export class RawWriter implements FormatWriter {
  /** Zeroing less than a byte is not asked for. */
  readonly unit = 1;
  readonly hasZeroClusters = true;
  readonly clusterSize: number;
  readonly #image: RawImage;
  readonly #storage: WritableStorage;

  readonly #lock: AccessLock;
  readonly #requestMaintenance: (() => void) | undefined;
  #hasBegun = false;
  #generation = 0;
  #pretendedSize: number | undefined;

  /** @param requestMaintenance asks for a call of `maintain` soon; undefined: nobody else does it */
  constructor(
    image: RawImage,
    storage: WritableStorage,
    lock: AccessLock,
    requestMaintenance?: () => void,
  ) {
    this.#requestMaintenance = requestMaintenance;
    this.#lock = lock;
    this.#image = image;
    this.#storage = storage;
    this.clusterSize = image.clusterSize;
  }

  begin(): void {
    if (this.#hasBegun) return;
    this.#hasBegun = true;
    this.#requestMaintenance?.();
  }

  mapInPlace(guestOffset: number, maxLength: number, out: HostPlace): number {
    out.hostOffset = guestOffset;
    return Math.min(maxLength, this.#image.virtualSize - guestOffset);
  }

  allocate(): never {
    assert.fail("raw images are all in place");
  }

  link(): never {
    assert.fail("raw images are all in place");
  }

  abandon(): never {
    assert.fail("raw images are all in place");
  }

  zero(
    guestOffset: number,
    length: number,
    space: ZeroSpace,
    _backed: number,
    _plan: WritePlan,
    out: ZeroProgress,
  ): void {
    this.#storage.zeroAt(guestOffset, length, space);
    out.need = ALLOCATION.inPlace;
    out.mustWrite = false;
    out.done = length;
  }

  checkResizable(): void {
    // What cannot be, the host refuses.
  }

  growTables(virtualSize: number): void {
    // In one step: a crash amid the preallocation must leave no size that nobody asked for.
    this.#storage.setLength(virtualSize);
  }

  setVirtualSize(virtualSize: number): void {
    this.#setLength(virtualSize);
  }

  dropTail(virtualSize: number): void {
    // What was preallocated in vain has made the file longer.
    if (!this.#storage.resizable || this.#storage.currentLength() <= virtualSize) return;
    this.#setLength(virtualSize);
  }

  pretendSize(virtualSize: number | undefined): void {
    this.#pretendedSize = virtualSize;
    this.#generation = -1;
  }

  changeHeader(): never {
    assert.fail("raw images have no header");
  }

  reserve(): never {
    assert.fail("raw images are all in place");
  }

  flush(): void {
    this.#storage.sync();
  }

  maintain(): void {
    // Nothing is reserved, nothing is freed late.
  }

  hasFrees(): boolean {
    return false;
  }

  close(): void {
    this.#storage.sync();
  }

  /** Nobody writes meanwhile: what lies past a new end would make the file longer again. */
  #setLength(length: number): void {
    this.#lock.exclusively(() => {
      this.#storage.setLength(length);
      // All threads look at the length.
      this.#lock.bumpGeneration();
    });
  }

  refresh(generation: number): void {
    if (generation === this.#generation) return;
    this.#generation = generation;
    this.#image.adopt(this.#pretendedSize ?? this.#storage.currentLength());
  }
}
