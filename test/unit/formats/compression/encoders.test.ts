/** Compressing clusters: what zlib and libzstd read back, and streams that have no room. */

import { inflateRawSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import type { ClusterEncoder } from "../../../../src/formats/compression/cluster-encoder.ts";
import { Deflater } from "../../../../src/formats/compression/deflater.ts";
import { ZstdDecoder } from "../../../../src/formats/compression/zstd-decoder.ts";
import { ZstdEncoder } from "../../../../src/formats/compression/zstd-encoder.ts";
import { NativeBuffer } from "../../../../src/syscalls/native-buffer.ts";
import { Random } from "../../../support/random.ts";

/** QEMU's window. */
const WINDOW_BITS = 12;
const GUARD = 0xee;

interface Encoder {
  readonly name: string;
  readonly encoder: ClusterEncoder;
  readonly decode: (stream: Uint8Array, length: number) => Uint8Array;
}

function unzstd(stream: Uint8Array, length: number): Uint8Array {
  const input = NativeBuffer.allocate(stream.length);
  input.bytes.set(stream);
  const output = NativeBuffer.allocate(length);
  const decoder = new ZstdDecoder();
  decoder.begin(input, stream.length);
  expect(decoder.produce(output, 0, length)).toBe(length);
  return output.bytes;
}

const ENCODERS: readonly Encoder[] = [
  {
    name: "deflate",
    encoder: new Deflater(),
    decode: (stream) => inflateRawSync(stream, { windowBits: WINDOW_BITS }),
  },
  { name: "zstd", encoder: new ZstdEncoder(), decode: unzstd },
];

/** Compresses bytes from the middle of a buffer into the middle of another; nothing beside may change. */
function encode(encoder: ClusterEncoder, bytes: Uint8Array, capacity: number): Buffer {
  const source = NativeBuffer.allocate(bytes.length + 100);
  source.bytes.fill(GUARD);
  source.bytes.set(bytes, 50);
  const target = NativeBuffer.allocate(capacity + 200);
  target.bytes.fill(GUARD);
  const length = encoder.encode(source, 50, bytes.length, target, 100, capacity);
  expect(length).toBeLessThanOrEqual(capacity);
  const around = [target.bytes.subarray(0, 100), target.bytes.subarray(100 + capacity)];
  for (const part of around) expect(part.every((byte) => byte === GUARD)).toBe(true);
  return Buffer.from(target.bytes.subarray(100, 100 + length));
}

describe.each(ENCODERS)("$name", ({ name, encoder, decode }) => {
  const random = new Random(`encode ${name}`);

  it.each([512, 4096, 65536, 2 ** 21])("gives back %i bytes", (length) => {
    const contents = [
      Buffer.alloc(length),
      Buffer.alloc(length, 0xcd),
      random.text(length),
      Buffer.concat([random.bytes(length / 2), Buffer.alloc(length / 2)]),
      // The same again, further back than any window.
      Buffer.alloc(length, random.bytes(5000)),
    ];
    for (const bytes of contents) {
      const stream = encode(encoder, bytes, length * 2 + 1000);
      expect(stream.length).toBeGreaterThan(0);
      expect(Buffer.compare(decode(stream, length), bytes)).toBe(0);
    }
  });

  it("refuses what does not get smaller", () => {
    expect(encode(encoder, random.bytes(65536), 65535)).toHaveLength(0);
    expect(encode(encoder, random.bytes(512), 511)).toHaveLength(0);
  });

  it("takes no more than its room", () => {
    const bytes = random.text(65536);
    const { length } = encode(encoder, bytes, 65535);
    expect(length).toBeLessThan(65535);
    // libzstd wants some bytes more than it fills in the end.
    expect(encode(encoder, bytes, length + 100)).toHaveLength(length);
    expect(encode(encoder, bytes, length - 1)).toHaveLength(0);
  });
});
