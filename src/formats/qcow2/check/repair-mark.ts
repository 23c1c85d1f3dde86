/** The header bits of an image while it is repaired, and when it is. */

import { encode, offsetOf, sizeOf } from "../../../binary/struct.ts";
import { StorageError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { AUTOCLEAR, INCOMPATIBLE } from "../features.ts";
import { HEADER, type Header } from "../header.ts";
import { HeaderWriter } from "../writer/header-writer.ts";

/** What a repair keeps right: it changes nothing that bitmaps or a raw data file are about. */
const MAINTAINED = AUTOCLEAR.bitmaps | AUTOCLEAR.rawExternalData;

export class RepairMark {
  readonly #storage: WritableStorage;
  readonly #header: Header;
  readonly #writer: HeaderWriter;
  readonly #wasDirty: boolean;
  #isSet = false;

  constructor(storage: WritableStorage, header: Header) {
    this.#storage = storage;
    this.#header = header;
    this.#writer = new HeaderWriter(storage, header.version);
    this.#wasDirty = (header.incompatible_features & INCOMPATIBLE.dirty) !== 0n;
  }

  /** Before the first change: the dirty bit set, and autoclear bits that nobody here knows cleared. */
  set(): void {
    const hasBits = this.#header.version >= 3;
    if (hasBits) this.#clearUnknown();
    this.#writer.announce();
    this.#storage.sync();
    this.#isSet = hasBits;
  }

  /**
   * After the last change.
   *
   * @param state clean: neither the dirty nor the corrupt bit is called for. damaged: both are as before
   */
  end(state: "clean" | "damaged"): void {
    const bits = this.#header.incompatible_features;
    const wasMarked = (bits & (INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt)) !== 0n;
    const clears = state === "clean" ? this.#isSet || wasMarked : this.#isSet && !this.#wasDirty;
    if (!clears) return;
    this.#clearUnknown();
    this.#writer.setIncompatible("dirty", false);
    if (state === "clean") this.#writer.setIncompatible("corrupt", false);
    this.#storage.sync();
  }

  /** As `end` for a damaged image, when the repair has failed; the host may refuse this, too. */
  abandon(): void {
    try {
      this.end("damaged");
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
    }
  }

  #clearUnknown(): void {
    const autoclear = this.#header.autoclear_features;
    if ((autoclear & ~MAINTAINED) === 0n) return;
    const start = offsetOf(HEADER, "autoclear_features");
    const end = sizeOf(HEADER, "autoclear_features");
    const header = NativeBuffer.allocate(end);
    encode(HEADER, { autoclear_features: autoclear & MAINTAINED }, header.bytes, "be");
    this.#storage.writeAt(header, start, end - start, start);
  }
}
