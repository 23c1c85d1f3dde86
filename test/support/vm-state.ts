/**
 * Images with a snapshot of a running machine: its state lies in clusters behind those of the disk, which only the
 * L1 table of the snapshot reaches. Laid out and read by hand. Source: qcow2 specification, "Snapshots".
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { qcow2Bytes } from "./qcow2-builder.ts";
import { readBe } from "./qcow2-header-builder.ts";
import type { Qcow2Cluster } from "./qcow2-tree-builder.ts";
import { Random } from "./random.ts";

const CLUSTER_BITS = 12;
const CLUSTER_SIZE = 2 ** CLUSTER_BITS;
const L2_ENTRIES = CLUSTER_SIZE / 8;
/** Bytes that an L1 entry maps. */
const L1_ENTRY_SIZE = CLUSTER_SIZE * L2_ENTRIES;

export const VM_DISK_SIZE = 1.5 * L1_ENTRY_SIZE;
/** L1 entries of the disk; those behind them map VM state. */
const DISK_ENTRIES = 2;
export const VM_SNAPSHOT = "running";

export interface VmStateKind {
  readonly name: string;
  /** Bytes, as the snapshot's entry has them. */
  readonly stateSize: number;
  readonly version?: 2;
  /** The active L1 table has it, too: so after a snapshot is applied. */
  readonly active: boolean;
}

export const VM_STATE_KINDS: readonly VmStateKind[] = [
  { name: "in the snapshot alone", stateSize: 2_500_000, active: false },
  { name: "more than 4 GiB", stateSize: 5 * 2 ** 30, active: true },
  { name: "in the active L1 table, too", stateSize: 2_500_000, active: true },
  { name: "version 2", stateSize: 2_500_000, version: 2, active: false },
];

/** An image of a kind, with data on its disk and a snapshot. */
export function vmStateImage({ name, stateSize, version, active }: VmStateKind): Buffer {
  const random = new Random(`VM state ${name}`);
  const data = (): Qcow2Cluster => ({ kind: "data", bytes: random.bytes(CLUSTER_SIZE) });
  const disk = { 0: data(), 7: data(), [L2_ENTRIES]: data() };
  const first = DISK_ENTRIES * L2_ENTRIES;
  const last = first + Math.floor((stateSize - 1) / CLUSTER_SIZE);
  const state = { [first]: data(), [first + 1]: data(), [first + 9]: data(), [last]: data() };
  const l1Entries = Math.floor(last / L2_ENTRIES) + 1;
  // 64-bit VM state size, disk size, icount (-1: none), and what a later version may add.
  const extra = Buffer.alloc(32, 0xff);
  extra.writeBigUInt64BE(BigInt(stateSize), 0);
  extra.writeBigUInt64BE(BigInt(VM_DISK_SIZE), 8);
  return qcow2Bytes({
    clusterBits: CLUSTER_BITS,
    virtualSize: VM_DISK_SIZE,
    version,
    l1Entries,
    ...(active ? {} : { header: { l1_size: DISK_ENTRIES } }),
    clusters: active ? { ...disk, ...state } : { 0: data(), 3: data() },
    snapshots: [
      {
        name: VM_SNAPSHOT,
        extra,
        fields: { vm_state_size: stateSize < 2 ** 32 ? stateSize : 0 },
        ...(active ? {} : { clusters: { ...disk, ...state } }),
      },
    ],
  });
}

/** What the image has of the VM state of its snapshot: the size, and hashes of clusters by guest offset. */
export function readVmState(path: string): Record<string, string> {
  const file = readFileSync(path);
  const u64 = (at: number): number => Number(readBe(file, at, 8));
  let entry = u64(64);
  for (let index = 0; index < file.readUInt32BE(60); index++) {
    const [idSize, nameSize] = [file.readUInt16BE(entry + 12), file.readUInt16BE(entry + 14)];
    const extraSize = file.readUInt32BE(entry + 36);
    const nameAt = entry + 40 + extraSize + idSize;
    if (file.toString("utf8", nameAt, nameAt + nameSize) === VM_SNAPSHOT) {
      const size = { size: `${file.readUInt32BE(entry + 32)} ${u64(entry + 40)}` };
      return { ...size, ...hashesOf(file, u64(entry), file.readUInt32BE(entry + 8)) };
    }
    entry = Math.ceil((nameAt + nameSize) / 8) * 8;
  }
  throw new Error(`${path} has no snapshot ${VM_SNAPSHOT}`);
}

/** Hashes of what an L1 table maps behind the disk. */
function hashesOf(file: Buffer, l1Offset: number, l1Entries: number): Record<string, string> {
  const offsetAt = (at: number): number => Number(readBe(file, at, 8) & 0x00ff_ffff_ffff_fe00n);
  const hashes: Record<string, string> = {};
  for (let l1Index = DISK_ENTRIES; l1Index < l1Entries; l1Index++) {
    const table = offsetAt(l1Offset + l1Index * 8);
    for (let l2Index = 0; table !== 0 && l2Index < L2_ENTRIES; l2Index++) {
      const host = offsetAt(table + l2Index * 8);
      if (host === 0) continue;
      const bytes = file.subarray(host, host + CLUSTER_SIZE);
      const offset = l1Index * L1_ENTRY_SIZE + l2Index * CLUSTER_SIZE;
      hashes[`0x${offset.toString(16)}`] = createHash("sha256").update(bytes).digest("hex");
    }
  }
  return hashes;
}
