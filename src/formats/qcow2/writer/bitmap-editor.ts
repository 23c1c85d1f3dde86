/**
 * Adding, removing and changing persistent bitmaps, as a list of edits that happen in order, or not at all if
 * one is refused. Contents change as at the end of a session; a directory with other entries is a new one,
 * which the header refers to when it is durable.
 */

import { TsimgfsError, UsageError } from "../../../errors.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import type { BitmapContents, BitmapEdit } from "../../writer.ts";
import { bitmapBytes, loadBits } from "../bitmap-bits.ts";
import {
  BITMAP_FLAG,
  type BitmapEntry,
  DIRECTORY_SIZE_MAX,
  encodeBitmapEntry,
  isUsable,
  NAME_SIZE_MAX,
} from "../bitmap-directory.ts";
import { backingReferenceOf, readFirstCluster } from "../first-cluster.ts";
import { HeaderArea } from "../header-area.ts";
import { BITMAPS_MAX, type BitmapsExtension } from "../header-extensions.ts";
import { rewriteHeader } from "../header-rewrite.ts";
import { BitmapTables } from "./bitmap-tables.ts";
import { BITMAP_MEMORY_MAX, markBits } from "./dirty-bitmaps.ts";
import { NUMBER, WORD } from "./shared-state.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

/** Granularities that QEMU chooses: the size of clusters within these bounds, bytes. */
const DEFAULT_GRANULARITY = { min: 4096, max: 65536 } as const;

/** A bitmap as it is to be. */
interface Draft {
  readonly name: string;
  readonly granularityBits: number;
  /** As it is in the directory; undefined: it is new. */
  readonly entry: BitmapEntry | undefined;
  isUsable: boolean;
  flags: number;
  /** Undefined: as its table says. */
  bits: Uint8Array | undefined;
}

export class BitmapEditor {
  readonly #context: Qcow2WriterContext;
  readonly #tables: BitmapTables;
  readonly #drafts: Draft[];
  readonly #removed: BitmapEntry[] = [];

  constructor(context: Qcow2WriterContext) {
    this.#context = context;
    this.#tables = new BitmapTables(context);
    this.#drafts = this.#tables.entries().map((entry) => ({
      name: entry.name,
      granularityBits: entry.granularityBits,
      entry,
      isUsable: isUsable(entry),
      flags: entry.flags,
      bits: undefined,
    }));
  }

  /**
   * Make all edits, durably. Nobody else uses the image.
   *
   * @throws {UsageError} an edit cannot be made; nothing is changed
   */
  apply(edits: readonly BitmapEdit[]): void {
    if (this.#context.layout.header.version < 3) {
      throw new UsageError(this.#context.storage.path, "version 2 has no persistent bitmaps");
    }
    for (const edit of edits) this.#edit(edit);
    this.#check();
    this.#writeChanges();
    if (this.#removed.length > 0 || this.#drafts.some(({ entry }) => entry === undefined)) {
      try {
        this.#writeDirectory();
      } catch (error) {
        this.#context.state.raise(WORD.leaks);
        throw error;
      }
    }
  }

  #edit(edit: BitmapEdit): void {
    const { name } = edit;
    const index = this.#drafts.findIndex((draft) => draft.name === name);
    const draft = this.#drafts[index];
    if (edit.action === "add") {
      if (draft !== undefined) this.#refuse(edit, "there is one already");
      this.#drafts.push(this.#newDraft(edit));
      return;
    }
    if (draft === undefined) this.#refuse(edit, "there is none");
    if (edit.action === "remove") {
      this.#drafts.splice(index, 1);
      if (draft.entry !== undefined) this.#removed.push(draft.entry);
      return;
    }
    if (!draft.isUsable) this.#refuse(edit, "it is inconsistent, and can only be removed");
    if (edit.action === "enable") draft.flags |= BITMAP_FLAG.auto;
    else if (edit.action === "disable") draft.flags &= ~BITMAP_FLAG.auto;
    else if (edit.action === "clear") draft.bits = this.#newBits(edit, draft.granularityBits);
    else if (edit.action === "merge") this.#merge(edit, edit.source, draft);
  }

  #merge(edit: BitmapEdit, from: string | BitmapContents, draft: Draft): void {
    const source = typeof from === "string" ? this.#find(edit, from) : from;
    const size = this.#virtualSize;
    if (source.virtualSize !== size) {
      this.#refuse(
        edit,
        `the disk of its source has ${source.virtualSize} bytes, this one ${size}`,
      );
    }
    draft.bits = this.#bitsOf(edit, draft);
    mergeBits(draft.bits, draft.granularityBits, source);
  }

  get #virtualSize(): number {
    return this.#context.state.get(NUMBER.virtualSize);
  }

  #refuse({ action, name }: BitmapEdit, reason: string): never {
    throw new UsageError(this.#context.storage.path, `${action} bitmap "${name}": ${reason}`);
  }

  #newDraft(edit: BitmapEdit & { readonly action: "add" }): Draft {
    const { min, max } = DEFAULT_GRANULARITY;
    const { clusterSize } = this.#context.layout;
    const granularity = edit.granularity ?? Math.max(min, Math.min(max, clusterSize));
    const nameSize = Buffer.byteLength(edit.name);
    if (nameSize < 1 || nameSize > NAME_SIZE_MAX) {
      this.#refuse(edit, `its name has ${nameSize} bytes, and must have 1 to ${NAME_SIZE_MAX}`);
    }
    // An empty table makes the image one that nobody opens.
    if (this.#virtualSize === 0)
      this.#refuse(edit, "the disk has 0 bytes: nothing could be marked");
    const granularityBits = Math.log2(granularity);
    return {
      name: edit.name,
      granularityBits,
      entry: undefined,
      isUsable: true,
      flags: BITMAP_FLAG.auto,
      bits: this.#newBits(edit, granularityBits),
    };
  }

  /** Zeros, in whole words. */
  #newBits(edit: BitmapEdit, granularityBits: number): Uint8Array {
    const bytes = bitmapBytes(this.#virtualSize, granularityBits);
    if (bytes > BITMAP_MEMORY_MAX) {
      const reason = `it takes ${bytes} bytes, the limit is ${BITMAP_MEMORY_MAX}; take a larger granularity`;
      this.#refuse(edit, reason);
    }
    return new Uint8Array(Math.ceil(bytes / 4) * 4);
  }

  #bitsOf(edit: BitmapEdit, draft: Draft): Uint8Array {
    if (draft.bits !== undefined || draft.entry === undefined) {
      return draft.bits ?? this.#newBits(edit, draft.granularityBits);
    }
    const bits = this.#newBits(edit, draft.granularityBits);
    const { layout, storage } = this.#context;
    const { clusterSize } = layout;
    loadBits(draft.entry, storage, { virtualSize: this.#virtualSize, clusterSize }, bits);
    return bits;
  }

  /** The source of a merge in this image. */
  #find(edit: BitmapEdit, name: string): BitmapContents {
    const draft = this.#drafts.find((candidate) => candidate.name === name);
    if (draft === undefined) this.#refuse(edit, `there is no bitmap "${name}"`);
    if (!draft.isUsable) this.#refuse(edit, `bitmap "${name}" is inconsistent`);
    const { granularityBits } = draft;
    const bits = this.#bitsOf(edit, draft);
    return { granularityBits, virtualSize: this.#virtualSize, bits };
  }

  #check(): void {
    const count = this.#drafts.length;
    const bytes = this.#drafts.reduce((sum, { name }) => sum + 32 + Buffer.byteLength(name), 0);
    if (count <= BITMAPS_MAX && bytes <= DIRECTORY_SIZE_MAX) return;
    const reason = `${count} bitmaps with names of that length are too many`;
    throw new TsimgfsError("ENOSPC", this.#context.storage.path, reason);
  }

  /** Contents and flags of bitmaps that stay in the directory. */
  #writeChanges(): void {
    const changed: { readonly entry: BitmapEntry; readonly flags: number }[] = [];
    for (const { entry, flags, bits } of this.#drafts) {
      if (entry === undefined || (bits === undefined && flags === entry.flags)) continue;
      changed.push({ entry, flags });
      if (bits === undefined) continue;
      this.#tables.markInUse([entry]);
      this.#tables.replace(entry, bits);
    }
    this.#tables.setFlags(changed.map(({ entry, flags }) => ({ ...entry, flags })));
  }

  #writeDirectory(): void {
    const { layout, storage, allocator } = this.#context;
    const { clusterSize } = layout;
    const old = layout.extensions.bitmaps;
    // Who finds the image in between knows that clusters may be leaked.
    allocator.marks.markDirty();
    const directory = Buffer.concat(this.#drafts.map((draft) => this.#encode(draft)));
    let extension: BitmapsExtension | undefined;
    if (directory.length > 0) {
      const buffer = NativeBuffer.allocate(directory.length);
      buffer.bytes.set(directory);
      const first = allocator.allocateArea(Math.ceil(directory.length / clusterSize));
      const directoryOffset = first * clusterSize;
      storage.writeAt(buffer, 0, directory.length, directoryOffset);
      const count = this.#drafts.length;
      extension = { count, directorySize: directory.length, directoryOffset };
    }
    const freed = this.#removed.flatMap((entry) => this.#tables.clustersOf(entry));
    allocator.marks.sync();
    allocator.changeHeader(() => this.#switchDirectory(extension));
    if (old !== undefined) {
      for (let at = 0; at < old.directorySize; at += clusterSize) {
        freed.push((old.directoryOffset + at) / clusterSize);
      }
    }
    this.#tables.free(freed.sort((a, b) => a - b));
  }

  /** An entry of the new directory. */
  #encode({ entry, name, flags, granularityBits, bits }: Draft): Buffer {
    if (entry !== undefined) {
      const bytes = NativeBuffer.allocate(entry.size);
      this.#context.storage.readAt(bytes, 0, entry.size, entry.at);
      return Buffer.from(bytes.bytes);
    }
    const table = this.#tables.create(granularityBits, bits ?? new Uint8Array(0));
    return encodeBitmapEntry(name, table, { flags, granularityBits });
  }

  #switchDirectory(extension: BitmapsExtension | undefined): void {
    const { storage } = this.#context;
    const firstCluster = readFirstCluster(storage);
    const { header, bytes } = firstCluster;
    const backing = backingReferenceOf(firstCluster, storage.path);
    const change = { backing, bitmaps: { extension } };
    rewriteHeader(storage, new HeaderArea(header, bytes), change, "a bitmap directory");
  }
}

/** Set all bits in `target` whose range has a bit in a source. */
function mergeBits(target: Uint8Array, granularityBits: number, source: BitmapContents): void {
  if (source.granularityBits === granularityBits) {
    const count = Math.min(target.length, source.bits.length);
    for (let at = 0; at < count; at++) target[at] = (target[at] ?? 0) | (source.bits[at] ?? 0);
    return;
  }
  const words = new Int32Array(target.buffer, target.byteOffset, target.length / 4);
  const scale = 2 ** (source.granularityBits - granularityBits);
  const last = Math.ceil(source.virtualSize / 2 ** granularityBits) - 1;
  for (let byte = 0; byte < source.bits.length; byte++) {
    const value = source.bits[byte] ?? 0;
    for (let bit = 0; value >>> bit !== 0; bit++) {
      if (((value >>> bit) & 1) === 0) continue;
      const at = byte * 8 + bit;
      const end = Math.max(Math.floor(at * scale), Math.ceil((at + 1) * scale) - 1);
      markBits(words, Math.floor(at * scale), Math.min(end, last));
    }
  }
}
