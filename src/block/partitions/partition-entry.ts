/** Partitions as a table says them, whichever it is, and the disk that the table is read from. */

/** As the kernel: partitions with higher numbers are not shown. */
export const PARTITIONS_MAX = 255;

/** One partition: a range that lies within the disk. Ranges may overlap. */
export interface PartitionEntry {
  /** As Linux counts: 1 to 4 are primary, logical ones begin at 5; of a GPT, the place in its array. */
  readonly number: number;
  /** Bytes. */
  readonly start: number;
  /** Bytes, > 0. */
  readonly size: number;
  /** A GUID of a GPT, or `0x83`. */
  readonly type: string;
  /** What PARTUUID= says; undefined: the disk has no signature. */
  readonly uuid: string | undefined;
  /** Of a GPT; may be empty. */
  readonly name: string;
}

/**
 * `gpt-backup`: the first copy is damaged, and the one at the end of the disk is used. `gpt-damaged`: so are
 * both. `none`: nothing that is known.
 */
export type PartitionTableKind = "gpt" | "gpt-backup" | "gpt-damaged" | "dos" | "none";

export interface PartitionTable {
  readonly kind: PartitionTableKind;
  /** What the table counts in, bytes. */
  readonly sectorSize: number;
  /** By number, without gaps for those that are unused. */
  readonly partitions: readonly PartitionEntry[];
}

/** A disk that a table is read from. */
export interface PartitionedDisk {
  /** Bytes. */
  readonly size: number;
  /** `length` bytes at `offset`, which lie within the disk; overwritten by the next call. */
  read(offset: number, length: number): Uint8Array;
}
