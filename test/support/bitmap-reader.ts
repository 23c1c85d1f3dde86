// Reads the persistent bitmaps of a qcow2 image: a parser of the tests' own, after the specification.

import { readFile } from "node:fs/promises";

export interface ReadBitmap {
  readonly name: string;
  readonly granularity: number;
  readonly inUse: boolean;
  readonly auto: boolean;
  /** Indexes of the bits that are set, of all that the table has. */
  readonly set: readonly number[];
}

/** The bitmaps that an image says are consistent with it; undefined: it says that they are not. */
export async function readBitmaps(path: string): Promise<readonly ReadBitmap[] | undefined> {
  const file = await readFile(path);
  if ((file.readBigUInt64BE(88) & 1n) === 0n) return undefined;
  const clusterSize = 2 ** file.readUInt32BE(20);
  const bitmaps: ReadBitmap[] = [];
  for (let at = file.readUInt32BE(100); file.readUInt32BE(at) !== 0; ) {
    const [type, length] = [file.readUInt32BE(at), file.readUInt32BE(at + 4)];
    if (type === 0x2385_2875) {
      let entry = Number(file.readBigUInt64BE(at + 24));
      for (let index = 0; index < file.readUInt32BE(at + 8); index++) {
        const nameSize = file.readUInt16BE(entry + 18);
        const nameAt = entry + 24 + file.readUInt32BE(entry + 20);
        const flags = file.readUInt32BE(entry + 12);
        bitmaps.push({
          name: file.toString("utf8", nameAt, nameAt + nameSize),
          granularity: 2 ** file.readUInt8(entry + 17),
          inUse: (flags & 1) !== 0,
          auto: (flags & 2) !== 0,
          set: readBits(file, entry, clusterSize),
        });
        entry = Math.ceil((nameAt + nameSize - entry) / 8) * 8 + entry;
      }
    }
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return bitmaps;
}

function readBits(file: Buffer, entry: number, clusterSize: number): number[] {
  const set: number[] = [];
  const table = Number(file.readBigUInt64BE(entry));
  for (let index = 0; index < file.readUInt32BE(entry + 8); index++) {
    const word = file.readBigUInt64BE(table + index * 8);
    const offset = Number(word & 0x00ff_ffff_ffff_fe00n);
    for (let byte = 0; byte < clusterSize; byte++) {
      const bits = offset === 0 ? (word === 1n ? 0xff : 0) : (file[offset + byte] ?? 0);
      for (let bit = 0; bit < 8; bit++) {
        if (((bits >> bit) & 1) !== 0) set.push((index * clusterSize + byte) * 8 + bit);
      }
    }
  }
  return set;
}
