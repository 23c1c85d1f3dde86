/**
 * Ways to damage a qcow2 image, each with what may be expected of it: whether a repair can make the
 * image clean again, and whether its guest can be read before and after.
 */

import { change, pastEnd, pick } from "./damage-entries.ts";
import { COMPRESSED, COPIED, type DamageImage } from "./damage-image.ts";
import type { Random } from "./random.ts";

/** Damages an image in place; false: it has nothing to damage in this way. */
export type Damage = (image: DamageImage, random: Random) => boolean;

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const DIRTY = 1n;
const CORRUPT = 2n;

function usedCluster(image: DamageImage, random: Random): number | undefined {
  const used: number[] = [];
  for (let cluster = 0; cluster < image.clusters(); cluster++) {
    if (image.refcount(cluster) > 0) used.push(cluster);
  }
  return pick(random, used);
}

function setFeature(image: DamageImage, bit: bigint): boolean {
  if (image.version() < 3) return false;
  image.setHeader("incompatible_features", BigInt(image.header("incompatible_features")) | bit);
  return true;
}

/** Damage that a repair undoes: the guest sees what it saw before. */
export const REPAIRABLE: Readonly<Record<string, Damage>> = {
  "leaked clusters behind the end": (image, random) => {
    const first = image.clusters();
    const count = random.between(1, 5);
    image.bytes = Buffer.concat([image.bytes, random.bytes(count * image.clusterSize())]);
    let done = false;
    for (let cluster = first; cluster < first + count; cluster++) {
      if (image.setRefcount(cluster, 1)) done = true;
    }
    return done;
  },
  "a refcount too high": (image, random) => {
    const cluster = usedCluster(image, random);
    if (cluster === undefined || image.refcountBits() === 1) return false;
    const max = Math.min(2 ** image.refcountBits() - 1, 1e9);
    return image.setRefcount(
      cluster,
      Math.min(max, image.refcount(cluster) + random.between(1, 9)),
    );
  },
  "a refcount of zero": (image, random) => {
    const cluster = usedCluster(image, random);
    return cluster !== undefined && image.setRefcount(cluster, 0);
  },
  "a shared cluster's refcount too low": (image, random) => {
    const shared: number[] = [];
    for (let cluster = 0; cluster < image.clusters(); cluster++) {
      if (image.refcount(cluster) > 1) shared.push(cluster);
    }
    const cluster = pick(random, shared);
    return cluster !== undefined && image.setRefcount(cluster, 1);
  },
  "all refcounts random": (image, random) => {
    const max = Math.min(2 ** image.refcountBits(), 8);
    for (let cluster = 0; cluster < image.clusters(); cluster++) {
      image.setRefcount(cluster, random.below(max));
    }
    return true;
  },
  "all refcounts zero": (image) => {
    for (let cluster = 0; cluster < image.clusters(); cluster++) image.setRefcount(cluster, 0);
    return true;
  },
  "COPIED wrong in the L1 table": (image, random) =>
    change(image, pick(random, image.l1Entries()), (word) => word ^ COPIED),
  "COPIED wrong in an L2 table": (image, random) =>
    change(image, pick(random, image.dataEntries()), (word) => word ^ COPIED),
  "COPIED wrong everywhere": (image) => {
    for (const entry of [...image.dataEntries(), ...image.l1Entries()]) {
      change(image, entry, (word) => word ^ COPIED);
    }
    return true;
  },
  "a refcount block missing": (image, random) =>
    change(image, pick(random, image.blockEntries()), () => 0n),
  "a refcount block not aligned": (image, random) =>
    image.clusterSize() > 512 &&
    change(image, pick(random, image.blockEntries()), (word) => word + 512n),
  "a refcount block past the end": (image, random) =>
    change(image, pick(random, image.blockEntries()), () => pastEnd(image, random)),
  "a refcount block very far past the end": (image, random) =>
    change(image, pick(random, image.blockEntries()), () => 1n << 62n),
  "a refcount block above 2^63": (image, random) =>
    change(image, pick(random, image.blockEntries()), (word) => word | (1n << 63n)),
  "reserved bits in the refcount table": (image, random) =>
    change(
      image,
      pick(random, image.blockEntries()),
      (word) => word | BigInt(random.between(1, 511)),
    ),
  "a refcount block named twice": (image, random) => {
    const entry = pick(random, image.blockEntries());
    if (entry === undefined) return false;
    const next = entry.at + 8 * random.between(1, 3);
    if (next + 8 > image.header("refcount_table_offset") + image.clusterSize()) return false;
    image.setU64(next, entry.word);
    return true;
  },
  "a refcount block over a data cluster": (image, random) => {
    const data = pick(random, image.dataEntries());
    const offset = data === undefined ? 0n : data.word & OFFSET_MASK;
    if (offset >= BigInt(image.bytes.length)) return false;
    return offset !== 0n && change(image, pick(random, image.blockEntries()), () => offset);
  },
  "no refcount table": (image) => {
    image.setHeader("refcount_table_clusters", 0);
    return true;
  },
  "the refcount table past the end": (image, random) => {
    image.setHeader("refcount_table_offset", pastEnd(image, random));
    return true;
  },
  "preallocated clusters not aligned": (image, random) => {
    // Zero clusters, or clusters without any sub-cluster, that keep their host cluster.
    const entries = image
      .dataEntries()
      .filter(({ at, word }) =>
        image.extended() ? image.bytes.readUInt32BE(at + 12) === 0 : (word & 1n) !== 0n,
      );
    if (image.clusterSize() === 512) return false;
    return change(image, pick(random, entries), (word) => word + 512n);
  },
  "the dirty bit": (image) => setFeature(image, DIRTY),
  "the corrupt bit": (image) => setFeature(image, CORRUPT),
  "dirty, and refcounts as a crash leaves them": (image, random) => {
    for (let count = random.between(1, 6); count > 0; count--) {
      const cluster = usedCluster(image, random);
      if (cluster !== undefined) image.setRefcount(cluster, 0);
    }
    return setFeature(image, DIRTY);
  },
  "unknown autoclear bits and a leak": (image, random) => {
    if (image.version() < 3) return false;
    image.setHeader("autoclear_features", BigInt(image.header("autoclear_features")) | (1n << 40n));
    image.bytes = Buffer.concat([image.bytes, Buffer.alloc(image.clusterSize())]);
    return image.setRefcount(image.clusters() - 1, 1 + random.below(1));
  },
};

/** Damage that loses something: a check finds it, a repair leaves it, and other things are put right. */
export const LASTING: Readonly<Record<string, Damage>> = {
  "an L2 table past the end": (image, random) =>
    change(image, pick(random, image.l1Entries()), () => COPIED | pastEnd(image, random)),
  "an L2 table not aligned": (image, random) =>
    image.clusterSize() > 512 &&
    change(image, pick(random, image.l1Entries()), (word) => word + 512n),
  "reserved bits in the L1 table": (image, random) =>
    change(image, pick(random, image.l1Entries()), (word) => word | (1n << 60n) | 4n),
  "an L1 entry of flags only": (image) => {
    image.setU64(image.header("l1_table_offset"), COPIED);
    return image.header("l1_size") > 0;
  },
  "a data cluster past the end": (image, random) =>
    change(image, pick(random, image.dataEntries()), () => COPIED | pastEnd(image, random)),
  "a data cluster above 2^53": (image, random) =>
    change(image, pick(random, image.dataEntries()), () => COPIED | (1n << 54n)),
  "a data cluster not aligned": (image, random) =>
    image.clusterSize() > 512 &&
    change(image, pick(random, image.dataEntries()), (word) => word + 512n),
  "reserved bits in an L2 table": (image, random) =>
    change(image, pick(random, image.dataEntries()), (word) => word | (1n << 58n) | 2n),
  "data over the header": (image, random) =>
    change(image, pick(random, image.l1Entries()), () => COPIED | 0n),
  "a compressed cluster with COPIED": (image, random) =>
    change(image, pick(random, image.compressedEntries()), (word) => word | COPIED),
  "a compressed cluster past the end": (image, random) =>
    change(image, pick(random, image.compressedEntries()), (word) => word | (1n << 44n)),
  "a compressed cluster in a place above 2^55": (image, random) =>
    image.clusterSize() <= 2048 &&
    change(image, pick(random, image.compressedEntries()), (word) => word | (1n << 57n)),
  "sub-clusters allocated and zero": (image, random) => {
    const entry = pick(random, image.dataEntries());
    if (entry === undefined || !image.extended()) return false;
    image.setU64(entry.at + 8, image.u64(entry.at + 8) | 0x1_0000_0001n);
    return true;
  },
  "sub-clusters of nothing": (image, random) => {
    const entry = pick(random, image.dataEntries());
    if (entry === undefined || !image.extended()) return false;
    image.setU64(entry.at, 0n);
    image.setU64(entry.at + 8, 1n);
    return true;
  },
  "a compressed cluster with sub-clusters": (image, random) => {
    const entry = pick(random, image.compressedEntries());
    if (entry === undefined || !image.extended()) return false;
    image.setU64(entry.at + 8, 1n);
    return true;
  },
  "the file cut short": (image, random) => {
    const keep = random.between(Math.floor(image.bytes.length / 2), image.bytes.length);
    image.bytes = image.bytes.subarray(0, keep);
    return true;
  },
};

/** Damage where several things claim one cluster: refcounts are put right, the guest may change. */
export const CROSSED: Readonly<Record<string, Damage>> = {
  "two guest clusters in one host cluster": (image, random) => {
    const entries = image.dataEntries();
    const from = pick(random, entries);
    return from !== undefined && change(image, pick(random, entries), () => from.word);
  },
  "two L1 entries of one L2 table": (image, random) => {
    const entries = image.l1Entries();
    const from = pick(random, entries);
    return from !== undefined && change(image, pick(random, entries), () => from.word);
  },
  "data over metadata": (image, random) => {
    const cluster = pick(random, image.metadataClusters()) ?? 0;
    const offset = BigInt(cluster * image.clusterSize());
    return change(image, pick(random, image.dataEntries()), () => COPIED | offset);
  },
  "a refcount table of more clusters": (image, random) => {
    const clusters = image.header("refcount_table_clusters");
    image.setHeader("refcount_table_clusters", clusters + random.between(1, 3));
    return true;
  },
  "an L1 table of more entries": (image, random) => {
    image.setHeader("l1_size", image.header("l1_size") + random.between(1, 100));
    return true;
  },
  "a compressed cluster over a table": (image, random) => {
    const cluster = pick(random, image.metadataClusters()) ?? 0;
    const offset = BigInt(cluster * image.clusterSize() + random.below(image.clusterSize()));
    return change(image, pick(random, image.compressedEntries()), () => COMPRESSED | offset);
  },
  "a compressed cluster of more sectors": (image, random) =>
    change(image, pick(random, image.compressedEntries()), (word) => word | (1n << 61n)),
  "a compressed cluster becomes a standard one": (image, random) =>
    change(image, pick(random, image.compressedEntries()), (word) => word & ~COMPRESSED),
  "a standard cluster becomes a compressed one": (image, random) =>
    change(image, pick(random, image.dataEntries()), (word) => (word & ~COPIED) | COMPRESSED),
  "sub-clusters at random": (image, random) => {
    const entry = pick(random, image.l2Entries());
    if (entry === undefined || !image.extended()) return false;
    random.bytes(8).copy(image.bytes, entry.at + 8);
    return true;
  },
  "random words in metadata": (image, random) => {
    for (let count = random.between(1, 4); count > 0; count--) {
      const cluster =
        pick(
          random,
          image.metadataClusters().filter((index) => index !== 0),
        ) ?? 1;
      const at = cluster * image.clusterSize() + random.below(image.clusterSize() / 8) * 8;
      if (at + 8 > image.bytes.length) continue;
      const word = random.bytes(8);
      if (random.below(2) === 0) word.fill(0, 0, 4);
      // Above 2^53 we know no more of an offset than that: not whether the next cluster follows it.
      word[1] = (word[1] ?? 0) & 0x1f;
      word.copy(image.bytes, at);
    }
    return true;
  },
  "bits flipped in metadata": (image, random) => {
    for (let count = random.between(1, 8); count > 0; count--) {
      const cluster =
        pick(
          random,
          image.metadataClusters().filter((index) => index !== 0),
        ) ?? 1;
      const at = cluster * image.clusterSize() + random.below(Math.min(image.clusterSize(), 256));
      if (at < image.bytes.length)
        image.bytes[at] = (image.bytes[at] ?? 0) ^ (1 << random.below(at % 8 === 1 ? 5 : 8));
    }
    return true;
  },
};
