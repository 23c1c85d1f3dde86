/** Several threads that compress clusters of a disk, change them and give them back, all in the same tables. */

import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { attachDisk } from "../../src/block/attach-disk.ts";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { createImage } from "../support/qemu.ts";
import { SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { bundleWorker, runWorker } from "../unit/bundled-worker.ts";
import type { CompressedThreadData } from "./compressed-thread.ts";

const THREADS = 4;
const CLUSTERS = 96;
const STEPS = byScale(300, 5000);

describe("threads that compress clusters side by side", () => {
  it.each([
    [4096, {}],
    [512, { compat: "0.10" }],
    [16384, { extended_l2: "on", compression_type: "zstd" }],
  ] as const)("keep to their own, with clusters of %i bytes, %j", async (clusterSize, options) => {
    const script = await bundleWorker(new URL("./compressed-thread.ts", import.meta.url));
    await withMemoryScratch("compressed-threads", async (directory) => {
      const path = join(directory, "disk.qcow2");
      const size = CLUSTERS * clusterSize;
      await createImage(path, "qcow2", {
        size,
        options: { ...options, cluster_size: clusterSize },
      });
      const chain = openChain(path, {
        format: "qcow2",
        backingPolicy: "any",
        forceShare: false,
        writing: {
          policy: { detectZeroes: "off", discard: "unmap", growable: false, copyOnRead: false },
          threads: THREADS + 1,
        },
      });
      const content = new SharedArrayBuffer(size);
      try {
        const common = { chain, threads: THREADS, clusters: CLUSTERS, clusterSize, content };
        const workers = Array.from({ length: THREADS }, (_, slot) => {
          const label = `compressed thread ${slot} of ${clusterSize}`;
          const data: CompressedThreadData = { ...common, slot, label, seed: SEED, steps: STEPS };
          return runWorker(script, data);
        });
        const ends = await Promise.allSettled(workers);
        for (const end of ends) if (end.status === "rejected") throw end.reason;
        const resources = { clusterCache: new ClusterCache() };
        attachDisk(chain, resources, { slot: THREADS, requestMaintenance: undefined }).close();
      } finally {
        closeChain(chain);
      }
      await run("qemu-img", ["check", path]);
      const flat = join(directory, "flat");
      await run("qemu-img", ["convert", "-O", "raw", path, flat]);
      const actual = SparseFile.load(flat).bytesAt(0, size);
      expect(actual.equals(Buffer.from(content))).toBe(true);
    });
  });
});
