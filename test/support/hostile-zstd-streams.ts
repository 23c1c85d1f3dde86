/** zstd streams for one qcow2 cluster: honest ones, and ones that lie, stop short, or never end. */

import {
  ZSTD_BLOCK_MAX,
  zstdEmptyFrame,
  zstdFrame,
  zstdRun,
  zstdSkippableFrame,
  zstdStore,
} from "./compressed-stream-builder.ts";
import { Random } from "./random.ts";

/** The cluster size that the streams are made for, bytes. */
export const ZSTD_CLUSTER = 65536;

export interface ZstdStream {
  readonly name: string;
  readonly stream: Buffer;
  /** Right by RFC 8878, or plainly wrong: then all decoders agree. Otherwise some are more patient. */
  readonly isValid: boolean;
  /** The cluster that every decoder must make of it. */
  readonly content: Buffer | undefined;
}

const random = new Random("zstd streams", 1);
const text = random.text(ZSTD_CLUSTER);
const noise = random.bytes(200);
const stored = zstdStore(text);
const halves = [text.subarray(0, ZSTD_CLUSTER / 2), text.subarray(ZSTD_CLUSTER / 2)] as const;
const run = { kind: "run", byte: 0x41, count: ZSTD_CLUSTER } as const;
const letters = Buffer.alloc(ZSTD_CLUSTER, 0x41);

function repeated(count: number, part: Buffer): Buffer {
  return Buffer.concat(Array.from({ length: count }, () => part));
}

function good(name: string, stream: Buffer, content: Buffer): ZstdStream {
  return { name, stream, isValid: true, content };
}

/** Every decoder refuses it, or reads the same. */
function clear(name: string, stream: Buffer): ZstdStream {
  return { name, stream, isValid: true, content: undefined };
}

/** Decoders may differ. */
function doubtful(name: string, stream: Buffer): ZstdStream {
  return { name, stream, isValid: false, content: undefined };
}

function bomb(size: number, contentSize: number): Buffer {
  const block = { kind: "run", byte: 7, count: ZSTD_BLOCK_MAX } as const;
  return zstdFrame({
    blocks: Array.from({ length: size / ZSTD_BLOCK_MAX }, () => block),
    contentSize,
  });
}

export const ZSTD_STREAMS: readonly ZstdStream[] = [
  good("an honest stream", stored, text),
  good("two frames", Buffer.concat(halves.map(zstdStore)), text),
  good("512 frames of 128 bytes", repeated(512, zstdRun(0x41, 128)), letters),
  good("a run of exactly one cluster", zstdRun(0x41, ZSTD_CLUSTER), letters),
  good(
    "a skippable frame first",
    Buffer.concat([zstdSkippableFrame(noise), zstdRun(0x41, ZSTD_CLUSTER)]),
    letters,
  ),
  good(
    "3000 empty frames, then a cluster",
    Buffer.concat([repeated(3000, zstdEmptyFrame()), zstdRun(0x41, ZSTD_CLUSTER)]),
    letters,
  ),
  good("garbage behind the frame", Buffer.concat([zstdRun(0x41, ZSTD_CLUSTER), noise]), letters),
  clear("random bytes", random.bytes(3000)),
  clear("zero bytes", Buffer.alloc(3000)),
  clear("only the magic number", Buffer.from([0x28, 0xb5, 0x2f, 0xfd])),
  clear("the second frame missing", zstdStore(halves[0])),
  clear("6000 empty frames, then nothing", repeated(6000, zstdEmptyFrame())),
  clear("a skippable frame of 4 GiB", zstdSkippableFrame(noise, 0xffff_ffff)),
  clear("only skippable frames", repeated(5000, zstdSkippableFrame(new Uint8Array(0)))),
  clear("a run one byte short", zstdRun(0x41, ZSTD_CLUSTER - 1)),
  clear("a run one byte too long", zstdRun(0x41, ZSTD_CLUSTER + 1)),
  clear("a bomb of 1 GiB in one frame", zstdRun(0x41, 1024 * 1024 * 1024)),
  clear("a bomb of 16 MiB with its content size", bomb(16 * 1024 * 1024, 16 * 1024 * 1024)),
  clear("a reserved block type", zstdFrame({ blocks: [{ kind: "reserved", size: 100 }] })),
  clear(
    "a frame without a last block, half full",
    zstdFrame({ blocks: [{ ...run, count: 32768 }], lastBlock: "missing" }),
  ),
  doubtful(
    "an empty frame first, the last byte missing",
    Buffer.concat([zstdEmptyFrame(), stored.subarray(0, -1)]),
  ),
  doubtful(
    "a small frame, then one with a window of 2 TiB",
    Buffer.concat([zstdRun(0x41, 100), zstdFrame({ blocks: [run], windowExponent: 31 })]),
  ),
  doubtful(
    "a small frame, then one with a window of 1 GiB",
    Buffer.concat([zstdRun(0x41, 100), zstdFrame({ blocks: [run], windowExponent: 20 })]),
  ),
  doubtful(
    "a skippable frame, then one with a window of 1 GiB",
    Buffer.concat([zstdSkippableFrame(noise), zstdFrame({ blocks: [run], windowExponent: 20 })]),
  ),
  ...[1n << 31n, 1n << 32n, 1n << 53n, 1n << 63n, -1n].map((contentSize) =>
    doubtful(`a content size of ${contentSize}`, zstdFrame({ blocks: [run], contentSize })),
  ),
  doubtful("a content size that is too small", zstdFrame({ blocks: [run], contentSize: 5 })),
  doubtful(
    "a content size that is too large",
    zstdFrame({ blocks: [run], contentSize: ZSTD_CLUSTER + 1 }),
  ),
  ...[0, 5, 10, 17, 18, 20, 21, 31].map((windowExponent) =>
    doubtful(
      `a window of 2^${10 + windowExponent} bytes`,
      zstdFrame({ blocks: [run], windowExponent }),
    ),
  ),
  doubtful("a dictionary", zstdFrame({ blocks: [run], dictionaryId: 0x12345678 })),
  doubtful(
    "a block larger than 128 KiB",
    zstdFrame({ blocks: [{ kind: "run", byte: 1, count: 0x1f_ffff }] }),
  ),
  doubtful("a frame without a last block", zstdFrame({ blocks: [run], lastBlock: "missing" })),
  ...[1, 4, 5, 9, 13, 17, 512, stored.length - 1].map((length) =>
    doubtful(`cut to ${length} bytes`, stored.subarray(0, length)),
  ),
];
