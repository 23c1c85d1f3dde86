/**
 * Makes compressed streams for qcow2 clusters: honest ones, and ones that lie about their size.
 *
 * Raw deflate comes from node:zlib with QEMU's 12-bit window; zstd frames are laid out by hand (RFC 8878)
 * from raw and run-length blocks, since Node 20 has no zstd.
 */

import { deflateRawSync } from "node:zlib";

/** Raw deflate as QEMU writes it: 4 KiB window. */
export function deflate(bytes: Uint8Array): Buffer {
  return deflateRawSync(bytes, { windowBits: 12, memLevel: 9 });
}

/** Raw deflate with a window QEMU cannot read when distances pass 4096. */
export function deflateWideWindow(bytes: Uint8Array): Buffer {
  return deflateRawSync(bytes, { windowBits: 15, memLevel: 9 });
}

/** A deflate stream of `count` empty stored blocks, none of them the last. */
export function emptyDeflateBlocks(count: number): Buffer {
  return Buffer.concat(
    Array.from({ length: count }, () => Buffer.from([0x00, 0x00, 0x00, 0xff, 0xff])),
  );
}

/** A zstd block: raw bytes, `count` times one byte, or a block type the format reserves. */
export type ZstdBlock =
  | { readonly kind: "raw"; readonly bytes: Uint8Array }
  | { readonly kind: "run"; readonly byte: number; readonly count: number }
  | { readonly kind: "reserved"; readonly size: number };

export interface ZstdFrame {
  readonly blocks: readonly ZstdBlock[];
  /** Frame content size as stated; left out: not stated. */
  readonly contentSize?: number | bigint | undefined;
  /** Window size as stated, 2^(10 + exponent), exponent 0 to 31; left out with a content size: single segment. */
  readonly windowExponent?: number | undefined;
  /** A dictionary id, 4 bytes. */
  readonly dictionaryId?: number | undefined;
  /** Mark the last block as last; "missing" leaves the frame unfinished. */
  readonly lastBlock?: "marked" | "missing" | undefined;
}

/** Largest block: 128 KiB, or the window if that is smaller. */
export const ZSTD_BLOCK_MAX = 128 * 1024;

/** One zstd frame. */
export function zstdFrame(frame: ZstdFrame): Buffer {
  const singleSegment = frame.windowExponent === undefined && frame.contentSize !== undefined;
  const descriptor =
    (frame.contentSize === undefined ? 0 : 0xc0) |
    (singleSegment ? 0x20 : 0) |
    (frame.dictionaryId === undefined ? 0 : 3);
  const parts: Buffer[] = [Buffer.from([0x28, 0xb5, 0x2f, 0xfd, descriptor])];
  if (!singleSegment) {
    parts.push(Buffer.from([(frame.windowExponent ?? 7) << 3]));
  }
  if (frame.dictionaryId !== undefined) {
    const id = Buffer.alloc(4);
    id.writeUInt32LE(frame.dictionaryId);
    parts.push(id);
  }
  if (frame.contentSize !== undefined) {
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt.asUintN(64, BigInt(frame.contentSize)));
    parts.push(size);
  }
  for (const [index, block] of frame.blocks.entries()) {
    const last = frame.lastBlock !== "missing" && index === frame.blocks.length - 1;
    parts.push(encodeBlock(block, last ? 1 : 0));
  }
  return Buffer.concat(parts);
}

function encodeBlock(block: ZstdBlock, last: 0 | 1): Buffer {
  switch (block.kind) {
    case "raw":
      return Buffer.concat([blockHeader(last, 0, block.bytes.length), block.bytes]);
    case "run":
      return Buffer.concat([blockHeader(last, 1, block.count), Buffer.from([block.byte])]);
    case "reserved":
      return blockHeader(last, 3, block.size);
  }
}

function blockHeader(last: 0 | 1, type: number, size: number): Buffer {
  const header = Buffer.alloc(3);
  header.writeUIntLE((last | (type << 1) | (size << 3)) >>> 0, 0, 3);
  return header;
}

/** One honest frame over `bytes`, in raw blocks. */
export function zstdStore(bytes: Uint8Array): Buffer {
  const blocks: ZstdBlock[] = [];
  for (let offset = 0; offset < bytes.length; offset += ZSTD_BLOCK_MAX) {
    blocks.push({ kind: "raw", bytes: bytes.subarray(offset, offset + ZSTD_BLOCK_MAX) });
  }
  return zstdFrame({ blocks, contentSize: bytes.length });
}

/** Frames of `size` equal bytes in all, in run-length blocks of one frame: about 30000 to 1. */
export function zstdRun(byte: number, size: number): Buffer {
  const blocks: ZstdBlock[] = [];
  for (let done = 0; done < size; done += ZSTD_BLOCK_MAX) {
    blocks.push({ kind: "run", byte, count: Math.min(ZSTD_BLOCK_MAX, size - done) });
  }
  return zstdFrame({ blocks, windowExponent: 11 });
}

/** A frame with nothing in it. */
export function zstdEmptyFrame(): Buffer {
  return zstdFrame({ blocks: [{ kind: "raw", bytes: new Uint8Array(0) }], contentSize: 0 });
}

/** A skippable frame that states `stated` bytes and holds `bytes`. */
export function zstdSkippableFrame(bytes: Uint8Array, stated: number = bytes.length): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt32LE(0x184d2a50, 0);
  header.writeUInt32LE(stated >>> 0, 4);
  return Buffer.concat([header, bytes]);
}
