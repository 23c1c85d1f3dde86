/** Raw deflate against node:zlib's compressor: whole, in pieces, cut short, and with garbage behind it. */

import { deflateRawSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Inflater } from "../../../../src/formats/compression/inflater.ts";
import { NativeBuffer } from "../../../../src/syscalls/native-buffer.ts";
import {
  deflate,
  deflateWideWindow,
  emptyDeflateBlocks,
} from "../../../support/compressed-stream-builder.ts";
import { Random } from "../../../support/random.ts";
import { expectBytes } from "../../expect-bytes.ts";

const CLUSTER = 65536;

function nativeCopy(bytes: Uint8Array): NativeBuffer {
  const buffer = NativeBuffer.allocate(bytes.length);
  buffer.bytes.set(bytes);
  return buffer;
}

/** What the inflater produces in calls of these sizes, as one buffer. */
function inflate(stream: Uint8Array, sizes: readonly number[], inflater = new Inflater()): Buffer {
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const output = NativeBuffer.allocate(total);
  inflater.begin(nativeCopy(stream), stream.length);
  let produced = 0;
  for (const size of sizes) {
    const count = inflater.produce(output, produced, size);
    expect(count).toBeLessThanOrEqual(size);
    produced += count;
    if (count < size) break;
  }
  return Buffer.from(output.bytes.subarray(0, produced));
}

const text = new Random("inflater").text(CLUSTER);

describe("Inflater", () => {
  it.each([
    ["text", text],
    ["zeros", Buffer.alloc(CLUSTER)],
    ["bytes that do not compress", new Random("noise").bytes(CLUSTER)],
  ])("inflates a cluster of %s, as QEMU deflates it", (_what, cluster) => {
    expectBytes(inflate(deflate(cluster), [CLUSTER]), cluster);
  });

  it.each([0, 1, 6, 9])("inflates level %i", (level) => {
    expectBytes(inflate(deflateRawSync(text, { level }), [CLUSTER]), text);
  });

  it("accepts a window of 32 KiB, which QEMU does not write", () => {
    const distant = Buffer.concat([
      text.subarray(0, 20_000),
      Buffer.alloc(10_000, 1),
      text.subarray(0, 20_000),
    ]);
    expectBytes(inflate(deflateWideWindow(distant), [distant.length]), distant);
  });

  it("goes on where the last call ended, for any sizes of calls", () => {
    const stream = deflate(text);
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 9000 }), { maxLength: 12 }), (sizes) => {
        const total = sizes.reduce((sum, size) => sum + size, 0);
        expectBytes(inflate(stream, sizes), text.subarray(0, Math.min(total, CLUSTER)));
      }),
      { numRuns: 50 },
    );
  });

  it("does not write outside of what is wanted", () => {
    const inflater = new Inflater();
    const stream = deflate(text);
    inflater.begin(nativeCopy(stream), stream.length);
    const output = NativeBuffer.allocate(300);
    output.bytes.fill(0xaa);
    expect(inflater.produce(output, 100, 100)).toBe(100);
    const expected = Buffer.alloc(300, 0xaa);
    text.copy(expected, 100, 0, 100);
    expect(Buffer.from(output.bytes)).toEqual(expected);
  });

  it("ignores garbage behind the stream", () => {
    const garbage = new Random("garbage").bytes(5000);
    expectBytes(inflate(Buffer.concat([deflate(text), garbage]), [CLUSTER]), text);
    expectBytes(inflate(Buffer.concat([deflate(text), garbage]), [CLUSTER - 1, 1]), text);
  });

  it("stops at the wanted bytes of a longer stream", () => {
    const bomb = deflate(Buffer.alloc(4 * 1024 * 1024));
    expectBytes(inflate(bomb, [CLUSTER]), Buffer.alloc(CLUSTER));
  });

  it("says how little a shorter stream holds", () => {
    const short = text.subarray(0, 1000);
    expectBytes(inflate(deflate(short), [CLUSTER]), short);
    expect(inflate(deflate(new Uint8Array(0)), [CLUSTER])).toHaveLength(0);
  });

  it("produces no more than a truncated stream holds, and right", () => {
    const stream = deflate(text);
    // The last bytes may hold nothing but the end of the last block.
    for (const length of [0, 1, 2, 100, stream.length - 20]) {
      const produced = inflate(stream.subarray(0, length), [CLUSTER]);
      expectBytes(produced, text.subarray(0, produced.length));
      expect(produced.length).toBeLessThan(CLUSTER);
    }
  });

  it("produces less than wanted from damaged streams, and from empty blocks", () => {
    expect(inflate(Buffer.alloc(1000, 0xff), [CLUSTER])).toHaveLength(0);
    expect(inflate(emptyDeflateBlocks(100), [CLUSTER])).toHaveLength(0);
    const damaged = Buffer.concat([
      deflate(text.subarray(0, 1000)).subarray(0, 200),
      Buffer.alloc(500, 0xff),
    ]);
    expect(inflate(damaged, [CLUSTER]).length).toBeLessThan(CLUSTER);
  });

  it("starts afresh after a stream that was damaged or not read to its end", () => {
    const inflater = new Inflater();
    inflate(Buffer.alloc(100, 0xff), [CLUSTER], inflater);
    expectBytes(inflate(deflate(text), [CLUSTER], inflater), text);
    inflate(deflate(Buffer.alloc(CLUSTER)), [10], inflater);
    expectBytes(inflate(deflate(text), [CLUSTER], inflater), text);
  });
});
