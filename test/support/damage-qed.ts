/**
 * A finished QED image, of QEMU's making, in memory: finds its structures and changes single entries of
 * them; and ways to damage it so. Written from the QED specification, without production code.
 */

import { change, pick } from "./damage-entries.ts";
import type { TableEntry } from "./damage-image.ts";
import { QED_FEATURE_NEED_CHECK, QED_HEADER_FIELDS, type QedHeaderField } from "./qed-builder.ts";
import type { Random } from "./random.ts";

export class DamageQed {
  bytes: Buffer;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  header(field: QedHeaderField): number {
    const { offset, size } = QED_HEADER_FIELDS[field];
    if (size === 4) return this.bytes.readUInt32LE(offset);
    return Number(this.bytes.readBigUInt64LE(offset));
  }

  addFeatures(bits: number): void {
    this.setU64(QED_HEADER_FIELDS.features.offset, BigInt(this.header("features") | bits));
  }

  setU64(at: number, word: bigint): void {
    this.bytes.writeBigUInt64LE(BigInt.asUintN(64, word), at);
  }

  clusterSize(): number {
    return this.header("cluster_size");
  }

  tableBytes(): number {
    return this.header("table_size") * this.clusterSize();
  }

  /** Clusters that are in the file as a whole; the last sector counts as one, too. */
  clusters(): number {
    return Math.floor((Math.ceil(this.bytes.length / 512) * 512) / this.clusterSize());
  }

  /** Entries of the L1 table that are not 0. */
  l1(): TableEntry[] {
    return this.#entries(this.header("l1_table_offset"));
  }

  /** L1 entries of tables that are where tables can be. */
  tables(): TableEntry[] {
    const cluster = BigInt(this.clusterSize());
    const last = BigInt(this.bytes.length - this.tableBytes());
    return this.l1().filter(({ word }) => word % cluster === 0n && word > 0n && word <= last);
  }

  /** Entries of these that are not 0. */
  l2(): TableEntry[] {
    return this.tables().flatMap(({ word }) => this.#entries(Number(word)));
  }

  /** L2 entries of data clusters. */
  data(): TableEntry[] {
    return this.l2().filter(({ word }) => word !== 1n);
  }

  /** A place of an L2 entry that is 0. */
  freeEntry(random: Random): number | undefined {
    const table = pick(random, this.tables());
    if (table === undefined) return undefined;
    const at = Number(table.word) + random.below(this.tableBytes() / 8) * 8;
    return this.bytes.readBigUInt64LE(at) === 0n ? at : undefined;
  }

  #entries(start: number): TableEntry[] {
    const entries: TableEntry[] = [];
    const end = Math.min(start + this.tableBytes(), this.bytes.length - 7);
    for (let at = start; at < end; at += 8) {
      const word = this.bytes.readBigUInt64LE(at);
      if (word !== 0n) entries.push({ at, word });
    }
    return entries;
  }
}

/** Damages an image in place; false: it has nothing to damage in this way. */
export type QedDamage = (image: DamageQed, random: Random) => boolean;

/** Words that are no places of clusters, in files of any length that tests have. */
function nowhere(image: DamageQed, random: Random): bigint {
  const cluster = BigInt(image.clusterSize());
  const end = BigInt(image.clusters()) * cluster;
  return random.pick([
    2n,
    cluster - 1n,
    cluster * 5n + 512n,
    end,
    end + cluster,
    end + 1n,
    1n << 53n,
    (1n << 53n) + cluster,
    1n << 63n,
    (1n << 64n) - cluster,
    (1n << 64n) - 1n,
  ]);
}

/** Space that is lost, and nothing else. */
export const QED_LEAKS: Readonly<Record<string, QedDamage>> = {
  "leaks at the end": (image, random) => {
    const bytes = random.between(1, 5) * image.clusterSize();
    image.bytes = Buffer.concat([image.bytes, random.bytes(bytes)]);
    return true;
  },
  "leaks at the end, and a part of a cluster": (image, random) => {
    const bytes = image.clusterSize() + random.between(1, image.clusterSize() - 1);
    image.bytes = Buffer.concat([image.bytes, random.bytes(bytes)]);
    return true;
  },
  "less than a cluster at the end": (image, random) => {
    const bytes = random.between(1, image.clusterSize() - 512);
    image.bytes = Buffer.concat([image.bytes, random.bytes(bytes)]);
    return true;
  },
  "data that is not referred to": (image, random) =>
    change(image, pick(random, image.data()), () => 0n),
  "a table that is not referred to": (image, random) =>
    change(image, pick(random, image.l1()), () => 0n),
  "the need-check bit": (image) => {
    image.addFeatures(QED_FEATURE_NEED_CHECK);
    return true;
  },
};

/** Entries that cannot be right: zeroing them makes the image consistent. */
export const QED_INVALID: Readonly<Record<string, QedDamage>> = {
  "an L2 entry that is no place": (image, random) => {
    const word = nowhere(image, random);
    return change(image, pick(random, image.data()), () => word);
  },
  "L2 entries that are no places": (image, random) => {
    const entries = image.data();
    for (const entry of entries) {
      if (random.below(2) === 0) image.setU64(entry.at, nowhere(image, random));
    }
    return entries.length > 0;
  },
  "an L2 entry in the header": (image, random) =>
    change(image, pick(random, image.data()), () => 512n),
  "an L1 entry that is no place": (image, random) => {
    const word = nowhere(image, random);
    return change(image, pick(random, image.l1()), () => word);
  },
  "an L1 entry like that of a zero cluster": (image, random) =>
    change(image, pick(random, image.l1()), () => 1n),
  "an L1 entry of a table that reaches past the end": (image, random) => {
    const last = BigInt(image.clusters() - 1) * BigInt(image.clusterSize());
    return change(image, pick(random, image.l1()), () => last);
  },
  "entries behind what the disk needs": (image, random) => {
    const end = image.header("l1_table_offset") + image.tableBytes();
    image.setU64(end - 8, nowhere(image, random));
    return true;
  },
  "garbage in an L2 table": (image, random) => {
    const table = pick(random, image.tables());
    if (table === undefined) return false;
    const bytes = random.bytes(random.between(1, 100) * 8);
    // Odd words: none of them is the place of a cluster.
    for (let at = 0; at < bytes.length; at += 8) bytes.writeUInt8(bytes.readUInt8(at) | 2, at);
    bytes.copy(image.bytes, Number(table.word) + 8 * random.below(200));
    return true;
  },
  "a file that is cut off": (image, random) => {
    const least = image.header("l1_table_offset") + image.tableBytes();
    image.bytes = image.bytes.subarray(0, random.between(least, image.bytes.length - 1));
    return true;
  },
};

/** Places that are referred to twice: no repair can tell whose they are. */
export const QED_SHARED: Readonly<Record<string, QedDamage>> = {
  "two L2 entries of one cluster": (image, random) => {
    const [entry, at] = [pick(random, image.data()), image.freeEntry(random)];
    if (entry === undefined || at === undefined) return false;
    image.setU64(at, entry.word);
    return true;
  },
  "an L2 entry of the L1 table": (image, random) =>
    change(image, pick(random, image.data()), () => BigInt(image.header("l1_table_offset"))),
  "an L2 entry of an L2 table": (image, random) => {
    const table = pick(random, image.l1());
    return table !== undefined && change(image, pick(random, image.data()), () => table.word);
  },
  "an L1 entry of the L1 table": (image, random) =>
    change(image, pick(random, image.l1()), () => BigInt(image.header("l1_table_offset"))),
  "two L1 entries of one table": (image, random) => {
    const entry = pick(random, image.l1());
    const end = image.header("l1_table_offset") + image.tableBytes();
    return change(image, { at: end - 16, word: 0n }, () => entry?.word ?? 0n);
  },
  "an L1 entry of a part of a table": (image, random) => {
    const cluster = BigInt(image.clusterSize());
    const entry = pick(random, image.l1());
    if (image.header("table_size") === 1) return false;
    return change(image, entry, (word) => word + cluster * BigInt(random.pick([1, -1])));
  },
};
