// Compressed clusters that are garbage, cut short, too long, too short, or bombs.

import {
  deflate,
  deflateWideWindow,
  emptyDeflateBlocks,
  zstdStore,
} from "../support/compressed-stream-builder.ts";
import { describeHostile, type HostileCase, imageFile } from "../support/hostile-case.ts";
import { qcow2Sample } from "../support/hostile-samples.ts";
import { ZSTD_STREAMS } from "../support/hostile-zstd-streams.ts";
import { buildQcow2 } from "../support/qcow2-builder.ts";
import { compressedEntry } from "../support/qcow2-tree-builder.ts";
import { Random } from "../support/random.ts";

const random = new Random("compression", 1);
const CLUSTER_BITS = 16;
const CLUSTER = 2 ** CLUSTER_BITS;
const text = random.text(CLUSTER);
const noise = random.bytes(CLUSTER);

/** An image with a good cluster before and after the one with `stream`. */
function streamCase(
  kind: "deflate" | "zstd",
  name: string,
  stream: Uint8Array,
  more: Partial<HostileCase> = {},
): HostileCase {
  const pack = kind === "zstd" ? zstdStore : deflate;
  const good = text.subarray(0, CLUSTER / 2);
  const bytes = Buffer.concat([good, Buffer.alloc(CLUSTER / 2)]);
  const image = () =>
    buildQcow2({
      clusterBits: CLUSTER_BITS,
      virtualSize: 4 * CLUSTER,
      compressionType: kind === "zstd" ? 1 : 0,
      clusters: {
        0: { kind: "compressed", stream: pack(bytes) },
        1: { kind: "compressed", stream },
        3: { kind: "data", bytes: noise },
      },
    });
  const write: HostileCase["write"] = (directory) => imageFile(image().bytes)(directory);
  return { name: `${kind}: ${name}`, format: "qcow2", write, expected: "open", ...more };
}

const deflated = deflate(text);
const wide = Buffer.concat([
  noise.subarray(0, 20000),
  noise.subarray(0, 20000),
  Buffer.alloc(CLUSTER - 40000),
]);

describeHostile("deflate streams", [
  streamCase("deflate", "random bytes", random.bytes(3000)),
  streamCase("deflate", "zero bytes", Buffer.alloc(3000)),
  streamCase("deflate", "0xff bytes", Buffer.alloc(3000, 0xff)),
  streamCase("deflate", "one byte", Buffer.from([0x03])),
  streamCase("deflate", "an empty final block", Buffer.from([0x03, 0x00])),
  streamCase("deflate", "less than a cluster", deflate(text.subarray(0, CLUSTER - 1))),
  streamCase("deflate", "half a cluster", deflate(text.subarray(0, CLUSTER / 2))),
  streamCase(
    "deflate",
    "one byte more than a cluster",
    deflate(Buffer.concat([text, Buffer.from([1])])),
  ),
  streamCase("deflate", "a bomb of 100 MiB of zeros", deflate(Buffer.alloc(100 * 1024 * 1024))),
  // qemu-img inflates with a 4 KiB window only; readers should take any.
  streamCase("deflate", "distances past 4 KiB", deflateWideWindow(wide), { oracle: "none" }),
  streamCase("deflate", "a zlib wrapper", Buffer.concat([Buffer.from([0x78, 0x9c]), deflated])),
  streamCase("deflate", "20000 empty stored blocks, then nothing", emptyDeflateBlocks(20000)),
  streamCase(
    "deflate",
    "10000 empty stored blocks, then a cluster",
    Buffer.concat([emptyDeflateBlocks(10000), deflated]),
  ),
  streamCase("deflate", "garbage behind the end", Buffer.concat([deflated, random.bytes(600)])),
  streamCase("deflate", "a flipped byte in the middle", flipped(deflated, deflated.length >> 1)),
  streamCase("deflate", "a flipped first byte", flipped(deflated, 0)),
  ...[1, 2, 100, 512, deflated.length - 1].map((length) =>
    streamCase("deflate", `cut to ${length} bytes`, deflated.subarray(0, length)),
  ),
]);

function flipped(bytes: Buffer, at: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[at] = (copy[at] ?? 0) ^ 0x55;
  return copy;
}

describeHostile(
  "zstd streams",
  ZSTD_STREAMS.map(({ name, stream, isValid }) =>
    streamCase("zstd", name, stream, { strictness: isValid ? "same" : "anything" }),
  ),
);

/** A sample whose cluster 3 has another compressed descriptor. */
function descriptorCase(
  name: string,
  sample: "version 3" | "version 2" | "zstd",
  entry: bigint,
): HostileCase {
  return {
    name: `${sample}: ${name}`,
    format: "qcow2",
    write: (directory) => imageFile(qcow2Sample(sample).setL2(3, entry).bytes)(directory),
    expected: "open",
  };
}

describeHostile(
  "compressed descriptors",
  (["version 3", "version 2", "zstd"] as const).flatMap((sample) => {
    const image = qcow2Sample(sample);
    const good = image.region("compressed 3");
    const at = (offset: number | bigint, length: number): bigint =>
      compressedEntry(12, { offset, length });
    return [
      descriptorCase("to the header", sample, at(0, 512)),
      descriptorCase("to the L2 table that holds it", sample, at(image.region("l2 0").offset, 512)),
      descriptorCase("to its own entry", sample, at(image.l2EntryOffset(3), 512)),
      descriptorCase("to the end of the file", sample, at(image.bytes.length, 512)),
      descriptorCase("to the last byte of the file", sample, at(image.bytes.length - 1, 512)),
      descriptorCase("far past the end", sample, at(1n << 50n, 512)),
      descriptorCase("at the highest offset", sample, -1n & ((1n << 63n) - 1n)),
      descriptorCase("with the most sectors", sample, image.getL2(3) | (0xfn << 58n)),
      descriptorCase("with no extra sectors", sample, at(good.offset, 1)),
      descriptorCase("one byte late", sample, at(good.offset + 1, good.length)),
      descriptorCase("one byte early", sample, at(good.offset - 1, good.length)),
    ];
  }),
);

describeHostile(
  "compressed clusters of 2 MiB",
  [
    deflate(Buffer.alloc(64 * 1024 * 1024)),
    deflate(random.bytes(2 * 1024 * 1024)),
    deflate(Buffer.alloc(1024)),
  ].map((stream, index) => ({
    name: `stream ${index} of ${stream.length} bytes`,
    format: "qcow2" as const,
    expected: "open" as const,
    command: "always" as const,
    write: (directory: string) => {
      const clusters = { 0: { kind: "compressed", stream } as const };
      return imageFile(
        buildQcow2({ clusterBits: 21, virtualSize: 4 * 1024 * 1024, clusters }).bytes,
      )(directory);
    },
  })),
);
