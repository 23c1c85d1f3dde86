/** zstd streams, from the zstd command and laid out by hand. */

import { execFileSync, spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import type { ClusterDecoder } from "../../../../src/formats/compression/cluster-decoder.ts";
import { ZstdDecoder } from "../../../../src/formats/compression/zstd-decoder.ts";
import { NativeBuffer } from "../../../../src/syscalls/native-buffer.ts";
import {
  zstdEmptyFrame,
  zstdFrame,
  zstdRun,
  zstdSkippableFrame,
  zstdStore,
} from "../../../support/compressed-stream-builder.ts";
import { Random } from "../../../support/random.ts";
import { expectBytes } from "../../expect-bytes.ts";

const CLUSTER = 65536;
const hasZstdCommand = spawnSync("zstd", ["--version"]).status === 0;

const text = new Random("zstd").text(CLUSTER);
const noise = new Random("zstd noise").bytes(CLUSTER);

/** What the zstd command makes of `bytes`. */
function compress(bytes: Uint8Array, ...options: string[]): Buffer {
  return execFileSync("zstd", ["-q", "-c", ...options], { input: bytes });
}

function decompress(decoder: ClusterDecoder, stream: Uint8Array, wanted = CLUSTER): Buffer {
  const input = NativeBuffer.allocate(stream.length);
  input.bytes.set(stream);
  const output = NativeBuffer.allocate(wanted + 20);
  output.bytes.fill(0xaa);
  decoder.begin(input, stream.length);
  const produced = decoder.produce(output, 10, wanted);
  expect(produced).toBeLessThanOrEqual(wanted);
  const outside = [...output.bytes.subarray(0, 10), ...output.bytes.subarray(wanted + 10)];
  expect(outside).toEqual(Array(20).fill(0xaa));
  return Buffer.from(output.bytes.subarray(10, 10 + produced));
}

const create = (): ClusterDecoder => new ZstdDecoder();

describe("zstd", () => {
  describe.skipIf(!hasZstdCommand)("with streams of the zstd command", () => {
    it.each([1, 3, 9, 19])("decodes level %i", (level) => {
      for (const bytes of [text, noise, Buffer.alloc(CLUSTER)]) {
        expectBytes(decompress(create(), compress(bytes, `-${level}`)), bytes);
      }
    });

    it("decodes several frames in one cluster", () => {
      const frames = [0, 1000, 30_000, 30_001, CLUSTER].map((start, index, starts) =>
        compress(text.subarray(start, starts[index + 1] ?? start), "-3"),
      );
      expectBytes(decompress(create(), Buffer.concat(frames)), text);
    });

    it("decodes frames with a checksum", () => {
      expectBytes(decompress(create(), compress(text, "-3", "--check")), text);
    });

    it("finds less than a cluster in a truncated stream", () => {
      const stream = compress(text, "-3");
      for (const length of [0, 1, 3, 4, 5, 6, 100, stream.length - 1]) {
        const produced = decompress(create(), stream.subarray(0, length));
        expect(produced.length).toBeLessThan(CLUSTER);
        expectBytes(produced, text.subarray(0, produced.length));
      }
    });

    it("finds less than a cluster in a damaged stream", () => {
      const stream = compress(text, "-3", "--no-check");
      stream.fill(0xff, 20, 400);
      expect(decompress(create(), stream).length).toBeLessThan(CLUSTER);
    });
  });

  describe("with streams laid out by hand", () => {
    it("decodes raw and run-length blocks", () => {
      expectBytes(decompress(create(), zstdStore(noise)), noise);
      expectBytes(decompress(create(), zstdRun(7, CLUSTER)), Buffer.alloc(CLUSTER, 7));
    });

    it("ignores what follows when the cluster is full", () => {
      for (const rest of [Buffer.alloc(700), Buffer.alloc(700, 0xff), zstdStore(noise), noise]) {
        expectBytes(decompress(create(), Buffer.concat([zstdStore(text), rest])), text);
      }
    });

    it("passes over empty frames", () => {
      const stream = Buffer.concat([
        zstdEmptyFrame(),
        zstdStore(text.subarray(0, 100)),
        zstdEmptyFrame(),
        zstdStore(text.subarray(100)),
      ]);
      expectBytes(decompress(create(), stream), text);
    });

    it("says how little a shorter stream holds", () => {
      expectBytes(decompress(create(), zstdStore(text.subarray(0, 1000))), text.subarray(0, 1000));
      const padded = Buffer.concat([zstdStore(text.subarray(0, 1000)), Buffer.alloc(600)]);
      expectBytes(decompress(create(), padded), text.subarray(0, 1000));
    });

    it("finds nothing in garbage, in nothing, and in a frame that is not finished", () => {
      expect(decompress(create(), noise)).toHaveLength(0);
      expect(decompress(create(), Buffer.alloc(512))).toHaveLength(0);
      const bytes = text.subarray(0, 1000);
      const unfinished = zstdFrame({ blocks: [{ kind: "raw", bytes }], lastBlock: "missing" });
      expect(decompress(create(), unfinished).length).toBeLessThanOrEqual(1000);
      const reserved = zstdFrame({ blocks: [{ kind: "reserved", size: 10 }] });
      expect(decompress(create(), reserved)).toHaveLength(0);
    });

    it.each([1, 2, 3])("takes %i bytes for a damaged stream, not for a fault of ours", (length) => {
      expect(decompress(create(), zstdStore(text).subarray(0, length))).toHaveLength(0);
    });

    it("makes no more than a cluster of a bomb", () => {
      expect(decompress(create(), zstdRun(0, 256 * 1024 * 1024)).length).toBeLessThanOrEqual(
        CLUSTER,
      );
    });

    it("survives windows and content sizes up to the format's largest", () => {
      const blocks = [{ kind: "raw", bytes: text.subarray(0, 10) }] as const;
      const before = process.memoryUsage().rss;
      for (const windowExponent of [0, 13, 20, 21, 31]) {
        decompress(create(), zstdFrame({ blocks, windowExponent }));
      }
      for (const contentSize of [2 ** 31, 2 ** 40, 2n ** 64n - 1n]) {
        decompress(create(), zstdFrame({ blocks, contentSize }));
      }
      expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1024 * 1024);
    });
  });
});

describe("one zstd decoder", () => {
  it("passes over skippable frames", () => {
    const stream = Buffer.concat([zstdSkippableFrame(Buffer.alloc(50, 1)), zstdStore(text)]);
    expectBytes(decompress(create(), stream), text);
  });

  it("uses one decoder for one cluster after the other", () => {
    const decoder = create();
    expectBytes(decompress(decoder, zstdStore(text)), text);
    expect(decompress(decoder, Buffer.alloc(600, 0xff))).toHaveLength(0);
    expectBytes(decompress(decoder, zstdStore(noise)), noise);
  });
});
