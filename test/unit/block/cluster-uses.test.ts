/** Uses of clusters beside a plain map. */

import { describe, expect, it } from "vitest";
import {
  CLUSTER_USE,
  type ClusterUse,
  ClusterUses,
  type UseRun,
} from "../../../src/block/cluster-uses.ts";
import { Random } from "../../support/random.ts";

const USES = Object.values(CLUSTER_USE);

function larger(first: ClusterUse, second: ClusterUse): ClusterUse {
  return first > second ? first : second;
}

describe("ClusterUses", () => {
  it("keeps what matters most of each cluster, across chunks and gaps", () => {
    const random = new Random("cluster uses");
    const uses = new ClusterUses("disk.qcow2");
    const map = new Map<number, ClusterUse>();
    for (let step = 0; step < 500; step++) {
      const first = random.below(50_000) + (random.below(4) === 0 ? 200_000 : 0);
      const count = random.between(1, random.below(10) === 0 ? 9000 : 20);
      const use = USES[random.below(USES.length)] ?? CLUSTER_USE.none;
      uses.mark(first, count, use);
      for (let cluster = first; cluster < first + count; cluster++) {
        map.set(cluster, larger(map.get(cluster) ?? CLUSTER_USE.none, use));
      }
    }
    const run: UseRun = { use: CLUSTER_USE.none, length: 0 };
    const end = 300_000;
    for (let cluster = 0; cluster < end; cluster += run.length) {
      uses.runAt(cluster, end - cluster, run);
      expect(run.length).toBeGreaterThan(0);
      const wanted = Array.from({ length: run.length }, (_, index) => map.get(cluster + index));
      expect(wanted.every((use) => (use ?? CLUSTER_USE.none) === run.use)).toBe(true);
    }
  });

  it("looks no further than it is told", () => {
    const uses = new ClusterUses("disk.qcow2");
    uses.mark(10, 100, CLUSTER_USE.data);
    const run: UseRun = { use: CLUSTER_USE.none, length: 0 };
    uses.runAt(20, 7, run);
    expect(run).toEqual({ use: CLUSTER_USE.data, length: 7 });
    uses.runAt(109, 7, run);
    expect(run).toEqual({ use: CLUSTER_USE.data, length: 1 });
    uses.runAt(1_000_000, 7, run);
    expect(run).toEqual({ use: CLUSTER_USE.none, length: 7 });
  });
});
