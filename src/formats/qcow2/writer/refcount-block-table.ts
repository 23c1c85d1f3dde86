/**
 * Where the refcount blocks are: the refcount table of an image that is written to. Nothing of it is kept in
 * memory. Source: qcow2 specification, "Host cluster management".
 */

import { joinHalves, SAFE_HI_MAX, TWO_TO_32 } from "../../../binary/words.ts";
import { CorruptionError, hex } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { NUMBER, type SharedState } from "./shared-state.ts";

const TABLE_ENTRY_SIZE = 8;
/** Lower half of an entry: bits 0-8 are reserved. */
const ENTRY_LO = 0xffff_fe00;
/** The table is looked through in pieces of this many bytes: most entries are 0. */
const PIECE_SIZE = 4096;

export class RefcountBlockTable {
  readonly #storage: WritableStorage;
  readonly #state: SharedState;
  readonly #clusterSize: number;
  readonly #entry = NativeBuffer.allocate(TABLE_ENTRY_SIZE);
  readonly #piece = NativeBuffer.allocate(PIECE_SIZE);

  constructor(storage: WritableStorage, state: SharedState, clusterSize: number) {
    this.#storage = storage;
    this.#state = state;
    this.#clusterSize = clusterSize;
  }

  /** Its entries. */
  get entries(): number {
    return (this.#state.get(NUMBER.refcountTableClusters) * this.#clusterSize) / TABLE_ENTRY_SIZE;
  }

  /**
   * Host offset of a refcount block, 0 if there is none.
   *
   * @throws {CorruptionError} it is not aligned
   */
  blockOffset(block: number): number {
    if (block >= this.entries) return 0;
    const at = this.#state.get(NUMBER.refcountTableOffset) + block * TABLE_ENTRY_SIZE;
    this.#storage.readAt(this.#entry, 0, TABLE_ENTRY_SIZE, at);
    const hi = this.#entry.view.getUint32(0);
    const lo = this.#entry.view.getUint32(4) & ENTRY_LO;
    const offset = hi > SAFE_HI_MAX ? Number.POSITIVE_INFINITY : joinHalves(hi, lo >>> 0);
    if (offset % this.#clusterSize !== 0) {
      const reason = `refcount block offset ${hex(offset)} is not a multiple of the cluster size ${hex(this.#clusterSize)}`;
      throw new CorruptionError(this.#storage.path, reason, { offset: at });
    }
    return offset;
  }

  /**
   * The first block from one on that the refcount table refers to, in either direction.
   *
   * @param step 1 forwards, -1 backwards
   * @returns -1: there is none
   */
  linkedBlock(from: number, step: 1 | -1): number {
    const entries = this.entries;
    const perPiece = PIECE_SIZE / TABLE_ENTRY_SIZE;
    const { view } = this.#piece;
    let piece = -1;
    for (let block = from; block >= 0 && block < entries; block += step) {
      const index = block % perPiece;
      if (block - index !== piece) {
        piece = block - index;
        const count = Math.min(perPiece, entries - piece) * TABLE_ENTRY_SIZE;
        const at = this.#state.get(NUMBER.refcountTableOffset) + piece * TABLE_ENTRY_SIZE;
        this.#storage.readAt(this.#piece, 0, count, at);
      }
      const at = index * TABLE_ENTRY_SIZE;
      if (view.getUint32(at) !== 0 || (view.getUint32(at + 4) & ENTRY_LO) !== 0) return block;
    }
    return -1;
  }

  /** Let the refcount table refer to a block. Its content must be durable. */
  link(block: number, cluster: number): void {
    putBlockOffset(this.#entry.view, 0, cluster * this.#clusterSize);
    const at = this.#state.get(NUMBER.refcountTableOffset) + block * TABLE_ENTRY_SIZE;
    this.#storage.writeAt(this.#entry, 0, TABLE_ENTRY_SIZE, at);
  }
}

/** Put a host offset as an entry has it: big-endian. */
export function putBlockOffset(view: DataView, at: number, offset: number): void {
  view.setUint32(at, Math.floor(offset / TWO_TO_32));
  view.setUint32(at + 4, offset % TWO_TO_32);
}
