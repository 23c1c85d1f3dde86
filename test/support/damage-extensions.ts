/** Ways to damage what header extensions lead to: bitmaps and the LUKS header. As `damage-kinds.ts`. */

import { change, pastEnd, pick } from "./damage-entries.ts";
import type { DamageImage } from "./damage-image.ts";
import type { Damage } from "./damage-kinds.ts";
import {
  AUTOCLEAR_BITMAPS,
  EXTENSION_BITMAPS,
  EXTENSION_CRYPTO_HEADER,
} from "./qcow2-header-builder.ts";
import type { Random } from "./random.ts";

const BITMAP_IN_USE = 1;

/** Change an entry of the bitmap directory, which starts at `place`. */
function changeBitmap(image: DamageImage, random: Random, to: (place: number) => void): boolean {
  const place = pick(random, image.bitmapPlaces());
  if (place === undefined) return false;
  to(place);
  return true;
}

/** Change a header extension, whose data starts at `place`. */
function changeExtension(image: DamageImage, type: number, to: (place: number) => void): boolean {
  const place = image.extensionPlace(type);
  if (place === undefined) return false;
  to(place);
  return true;
}

function setInUse(image: DamageImage): void {
  for (const at of image.bitmapPlaces()) {
    image.bytes.writeUInt32BE(image.bytes.readUInt32BE(at + 12) | BITMAP_IN_USE, at + 12);
  }
}

/** Damage that a repair undoes, or that harms nobody. */
export const EXTENSIONS_REPAIRABLE: Readonly<Record<string, Damage>> = {
  "bitmaps that a writer did not know": (image) => {
    if (image.bitmapPlaces().length === 0) return false;
    const bits = BigInt(image.header("autoclear_features"));
    image.setHeader("autoclear_features", bits & ~AUTOCLEAR_BITMAPS);
    return true;
  },
  "bitmaps in use": (image) => {
    setInUse(image);
    return image.bitmapPlaces().length > 0;
  },
  "a refcount of zero of what bitmaps have": (image, random) => {
    const tables = image.bitmapPlaces().map((at) => image.u64(at));
    const clusters = image.bitmapEntries().map(({ word }) => word & ~1n);
    const offset = pick(random, [...tables, ...clusters]);
    return (
      offset !== undefined && image.setRefcount(Math.floor(Number(offset) / image.clusterSize()), 0)
    );
  },
  "refcounts of the LUKS header": (image, random) => {
    const place = image.extensionPlace(EXTENSION_CRYPTO_HEADER);
    if (place === undefined) return false;
    const first = Number(image.u64(place)) / image.clusterSize();
    const clusters = Math.ceil(Number(image.u64(place + 8)) / image.clusterSize());
    for (let count = random.between(1, 9); count > 0; count--) {
      image.setRefcount(first + random.below(clusters), random.pick([0, 2, 3]));
    }
    return true;
  },
};

/** Damage that loses bitmaps, or the key, and nothing of the disk. */
export const EXTENSIONS_LASTING: Readonly<Record<string, Damage>> = {
  "a bitmap's cluster past the end": (image, random) =>
    change(image, pick(random, image.bitmapEntries()), () => pastEnd(image, random)),
  "a bitmap's cluster not aligned": (image, random) =>
    image.clusterSize() > 512 &&
    change(image, pick(random, image.bitmapEntries()), (word) => word + 512n),
  "reserved bits in a bitmap's table": (image, random) =>
    change(image, pick(random, image.bitmapEntries()), (word) => word | (1n << 60n) | 4n),
  "a bitmap in use with a cluster past the end": (image, random) => {
    setInUse(image);
    return change(image, pick(random, image.bitmapEntries()), () => pastEnd(image, random));
  },
  "a bitmap in use with a cluster that is not aligned": (image, random) => {
    setInUse(image);
    return (
      image.clusterSize() > 512 &&
      change(image, pick(random, image.bitmapEntries()), (word) => word + 512n)
    );
  },
  "a bitmap in use with reserved bits in its table": (image, random) => {
    setInUse(image);
    return change(image, pick(random, image.bitmapEntries()), (word) => word | (1n << 60n));
  },
  "a bitmap's table past the end": (image, random) =>
    changeBitmap(image, random, (at) => image.setU64(at, pastEnd(image, random))),
  "a bitmap's table not aligned": (image, random) =>
    image.clusterSize() > 512 &&
    changeBitmap(image, random, (at) => image.setU64(at, image.u64(at) + 512n)),
  "a bitmap's table of another size": (image, random) =>
    changeBitmap(image, random, (at) => {
      image.bytes.writeUInt32BE(random.pick([0, 1, 2, 9, 1 << 27, (1 << 27) + 1]), at + 8);
    }),
  "a bitmap in use with a table of another size": (image, random) => {
    setInUse(image);
    return changeBitmap(image, random, (at) => {
      image.bytes.writeUInt32BE(random.pick([0, 1, 2, 9, 1 << 27, (1 << 27) + 1]), at + 8);
    });
  },
  "a bitmap of an unknown type": (image, random) =>
    changeBitmap(image, random, (at) => image.bytes.writeUInt8(random.pick([0, 2, 255]), at + 16)),
  "a bitmap of another granularity": (image, random) =>
    changeBitmap(image, random, (at) => {
      image.bytes.writeUInt8(random.pick([9, 10, 16, 30, 31, 64, 65, 255]), at + 17);
    }),
  "a bitmap with reserved flags": (image, random) =>
    changeBitmap(image, random, (at) => {
      const flags = image.bytes.readUInt32BE(at + 12);
      // Bit 2 is about extra data: QEMU knows of none, and takes it for reserved.
      image.bytes.writeUInt32BE((flags | (2 ** random.between(3, 31))) >>> 0, at + 12);
    }),
  "a bitmap's name of another size": (image, random) =>
    changeBitmap(image, random, (at) => {
      image.bytes.writeUInt16BE(random.pick([0, 1, 2, 1023, 1024, 65535]), at + 18);
    }),
  "a bitmap with extra data past its directory": (image, random) =>
    changeBitmap(image, random, (at) => {
      image.bytes.writeUInt32BE(random.pick([1000, 65536, 0xffff_ffff]), at + 20);
    }),
  "two bitmaps of one name": (image) => {
    const [first, second] = image.bitmapPlaces();
    if (first === undefined || second === undefined) return false;
    // As long as the shorter of the two, and the same.
    const length = Math.min(...[first, second].map((at) => image.bytes.readUInt16BE(at + 18)));
    for (const at of [first, second]) {
      image.bytes.writeUInt16BE(length, at + 18);
      image.bytes.fill("x", at + 24, at + 24 + length);
    }
    return true;
  },
  "more or fewer bitmaps than there are": (image, random) =>
    changeExtension(image, EXTENSION_BITMAPS, (at) => {
      image.bytes.writeUInt32BE(random.pick([0, 1, 3, 65535, 65536]), at);
    }),
  "a bitmap directory of another size": (image, random) =>
    changeExtension(image, EXTENSION_BITMAPS, (at) => {
      const size = image.u64(at + 8);
      image.setU64(at + 8, random.pick([0n, 8n, size - 8n, size + 8n, 1n << 26n, 1n << 60n]));
    }),
  "a bitmap directory somewhere else": (image, random) =>
    changeExtension(image, EXTENSION_BITMAPS, (at) => {
      const offset = image.u64(at + 16);
      image.setU64(at + 16, random.pick([0n, offset + 8n, pastEnd(image, random), 1n << 60n]));
    }),
  "a LUKS header somewhere else": (image, random) =>
    changeExtension(image, EXTENSION_CRYPTO_HEADER, (at) => {
      image.setU64(at, random.pick([0n, image.u64(at) + 512n, pastEnd(image, random), 1n << 60n]));
    }),
  "a LUKS header of another length": (image, random) =>
    changeExtension(image, EXTENSION_CRYPTO_HEADER, (at) => {
      const longer = image.u64(at + 8) + BigInt(image.clusterSize());
      // No length above 2^53: we refuse it at once, where QEMU takes the key material for leaked clusters.
      image.setU64(at + 8, random.pick([0n, 512n, longer, 1n << 40n]));
    }),
};

/** Damage where several things claim one cluster. */
export const EXTENSIONS_CROSSED: Readonly<Record<string, Damage>> = {
  "a bitmap's cluster over a table": (image, random) => {
    const cluster = pick(random, image.metadataClusters()) ?? 0;
    const offset = BigInt(cluster * image.clusterSize());
    return change(image, pick(random, image.bitmapEntries()), () => offset);
  },
  "two bitmaps of one table": (image) => {
    const [first, second] = image.bitmapPlaces();
    if (first === undefined || second === undefined) return false;
    image.bytes.copy(image.bytes, second, first, first + 12);
    return true;
  },
  "a bitmap's table over the L1 table": (image, random) =>
    changeBitmap(image, random, (at) => {
      image.setU64(at, BigInt(image.header("l1_table_offset")));
    }),
};
