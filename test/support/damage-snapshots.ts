/** Ways to damage the snapshots of a qcow2 image: their table, and the tables of each. As `damage-kinds.ts`. */

import { change, pastEnd, pick } from "./damage-entries.ts";
import { COMPRESSED, COPIED, type DamageImage } from "./damage-image.ts";
import type { Damage } from "./damage-kinds.ts";
import type { Random } from "./random.ts";

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;

/** Change an entry of the snapshot table, which starts at `place`. */
function changeSnapshot(image: DamageImage, random: Random, to: (place: number) => void): boolean {
  const place = pick(random, image.snapshotPlaces());
  if (place === undefined) return false;
  to(place);
  return true;
}

/** Damage that a repair undoes, or that harms nobody. */
export const SNAPSHOTS_REPAIRABLE: Readonly<Record<string, Damage>> = {
  "COPIED wrong in a snapshot's tables": (image, random) => {
    const entries = [...image.snapshotL1Entries(), ...image.snapshotL2Entries()];
    // The flag of a compressed cluster is not allowed, wherever it is.
    const standard = entries.filter(({ word }) => (word & COMPRESSED) === 0n);
    return change(image, pick(random, standard), (word) => word ^ COPIED);
  },
  "snapshots that are forgotten": (image, random) => {
    const count = image.header("nb_snapshots");
    if (count === 0) return false;
    image.setHeader("nb_snapshots", random.below(count));
    return true;
  },
  "a refcount of zero of a snapshot's table": (image, random) => {
    const entry = pick(random, image.snapshotL1Entries());
    const cluster = Number((entry?.word ?? 0n) & OFFSET_MASK) / image.clusterSize();
    return entry !== undefined && image.setRefcount(cluster, 0);
  },
};

/** Damage that loses something of snapshots, and nothing of the disk. */
export const SNAPSHOTS_LASTING: Readonly<Record<string, Damage>> = {
  "a snapshot's L1 table not aligned": (image, random) =>
    image.clusterSize() > 512 &&
    changeSnapshot(image, random, (at) => image.setU64(at, image.u64(at) + 512n)),
  "a snapshot's L1 table past the end": (image, random) =>
    changeSnapshot(image, random, (at) => image.setU64(at, pastEnd(image, random))),
  "a snapshot's L1 table above 2^53": (image, random) =>
    changeSnapshot(image, random, (at) => image.setU64(at, image.u64(at) | (1n << 60n))),
  "a snapshot's L1 table too large": (image, random) =>
    changeSnapshot(image, random, (at) => image.bytes.writeUInt32BE(0x1000_0000, at + 8)),
  "a snapshot's L1 table of a few entries more, or none": (image, random) =>
    changeSnapshot(image, random, (at) => image.bytes.writeUInt32BE(random.below(9), at + 8)),
  "a snapshot's L2 table past the end": (image, random) =>
    change(image, pick(random, image.snapshotL1Entries()), () => pastEnd(image, random)),
  "a snapshot's L2 table not aligned": (image, random) =>
    image.clusterSize() > 512 &&
    change(image, pick(random, image.snapshotL1Entries()), (word) => word + 512n),
  "reserved bits in a snapshot's L1 table": (image, random) =>
    change(image, pick(random, image.snapshotL1Entries()), (word) => word | (1n << 59n) | 8n),
  "a snapshot's cluster past the end": (image, random) =>
    change(image, pick(random, image.snapshotL2Entries()), () => pastEnd(image, random)),
  "a snapshot's cluster not aligned": (image, random) =>
    image.clusterSize() > 512 &&
    change(image, pick(random, image.snapshotL2Entries()), (word) => word + 512n),
  "reserved bits in a snapshot's L2 table": (image, random) =>
    change(image, pick(random, image.snapshotL2Entries()), (word) => word | (1n << 57n) | 16n),
  "the snapshot table not aligned": (image) => {
    if (image.header("nb_snapshots") === 0) return false;
    image.setHeader("snapshots_offset", image.header("snapshots_offset") + 8);
    return true;
  },
  "the snapshot table past the end": (image, random) => {
    if (image.header("nb_snapshots") === 0) return false;
    image.setHeader("snapshots_offset", pastEnd(image, random));
    return true;
  },
  "extra data of a snapshot of another size": (image, random) =>
    changeSnapshot(image, random, (at) => {
      image.bytes.writeUInt32BE(random.pick([0, 8, 16, 24, 1024, 1025, 1 << 30]), at + 36);
    }),
  "a snapshot's name of another size": (image, random) =>
    changeSnapshot(image, random, (at) => image.bytes.writeUInt16BE(random.below(65536), at + 14)),
};

/** Damage where several things claim one cluster, or tables are taken from what is none. */
export const SNAPSHOTS_CROSSED: Readonly<Record<string, Damage>> = {
  "more snapshots than there are": (image, random) => {
    const count = image.header("nb_snapshots");
    image.setHeader("nb_snapshots", count + random.between(1, 3));
    return count > 0;
  },
  "a snapshot's L2 table over another table": (image, random) => {
    const cluster = pick(random, image.metadataClusters()) ?? 0;
    const offset = BigInt(cluster * image.clusterSize());
    return change(image, pick(random, image.snapshotL1Entries()), () => offset);
  },
  "a snapshot's cluster over another table": (image, random) => {
    const cluster = pick(random, image.metadataClusters()) ?? 0;
    const offset = BigInt(cluster * image.clusterSize());
    return change(image, pick(random, image.snapshotL2Entries()), () => offset);
  },
  "the L1 table of a snapshot is that of the disk": (image, random) =>
    changeSnapshot(image, random, (at) => {
      image.setU64(at, BigInt(image.header("l1_table_offset")));
    }),
};
