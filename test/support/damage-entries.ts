/** What kinds of damage have in common, of qcow2 and of QED: which entry, and what becomes of it. */

import type { TableEntry } from "./damage-image.ts";
import type { Random } from "./random.ts";

/** One of several; undefined: there is none. */
export function pick<T>(random: Random, choices: readonly T[]): T | undefined {
  return choices[random.below(choices.length)];
}

/** Change the word of an entry; false if there is none. */
export function change(
  image: { setU64(at: number, word: bigint): void },
  entry: TableEntry | undefined,
  to: (word: bigint) => bigint,
): boolean {
  if (entry === undefined) return false;
  image.setU64(entry.at, to(entry.word));
  return true;
}

/** A host offset that is cluster aligned, but past the end of the file. */
export function pastEnd(
  image: { clusters(): number; clusterSize(): number },
  random: Random,
): bigint {
  const cluster = image.clusters() + 1 + random.below(1000);
  return BigInt(cluster * image.clusterSize());
}
