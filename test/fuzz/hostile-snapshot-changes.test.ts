// Snapshots of images that are damaged at random are made, applied and deleted: it is done, or refused as
// what is expected of such images; nothing crashes, hangs, or takes much memory.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { attachDisk } from "../../src/block/attach-disk.ts";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import type { SnapshotAction } from "../../src/block/snapshots.ts";
import { TsimgfsError } from "../../src/errors.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { expectBoundedMemory } from "../support/hostile-memory.ts";
import { mutate } from "../support/hostile-mutator.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";

/** Mutants of each kind. */
const COUNT = byScale(60, 2000);

const POLICY = {
  copyOnRead: false,
  detectZeroes: "off",
  discard: "unmap",
  growable: false,
} as const;

/** Tries a change. Throws what no image may lead to. */
function tryChange(path: string, action: SnapshotAction, name: string): "done" | "refused" {
  try {
    const writing = { policy: POLICY, threads: 1 };
    const options = { format: "qcow2", backingPolicy: "none", forceShare: false, writing } as const;
    const chain = openChain(path, options);
    try {
      const thread = { slot: 0, requestMaintenance: undefined };
      const disk = attachDisk(chain, { clusterCache: new ClusterCache() }, thread);
      disk.changeSnapshots(action, name);
      disk.close();
      return "done";
    } finally {
      closeChain(chain);
    }
  } catch (error) {
    if (error instanceof TsimgfsError) return "refused";
    throw error;
  }
}

describe("snapshots of damaged images", () => {
  it.each([
    ["clusters of 4 KiB", "cluster_size=4k"],
    ["clusters of 512 bytes", "cluster_size=512"],
    ["sub-clusters", "extended_l2=on,cluster_size=16k"],
  ])("%s", async (label, options) => {
    await withScratch("hostile-changes", async (directory) => {
      const path = join(directory, "image.qcow2");
      const list = options.split(",").map((option) => option.split("="));
      await createImage(path, "qcow2", { size: 2 ** 20, options: Object.fromEntries(list) });
      await qemuIo(path, "qcow2", ["write -q -P 1 0 200k", "write -q -c -P 2 512k 64k"]);
      await run("qemu-img", ["snapshot", "-c", "one", path]);
      await qemuIo(path, "qcow2", ["write -q -P 3 100k 200k"]);
      const intact = readFileSync(path);
      const outcomes = new Set<string>();
      for (let number = 0; number < COUNT; number++) {
        const random = new Random(`${label} ${number}`);
        const { bytes } = mutate(intact, random);
        for (const [action, name] of [
          ["create", "two"],
          ["apply", "one"],
          ["delete", "one"],
        ] as const) {
          writeFileSync(path, bytes);
          outcomes.add(expectBoundedMemory(path, () => tryChange(path, action, name)));
        }
      }
      expect([...outcomes].sort()).toEqual(["done", "refused"]);
    });
  });
});
