/** A short workload that has something of everything that changes an image. */

import { Random } from "../../support/random.ts";
import type { DiskKind } from "./disk-kinds.ts";
import type { FaultStep } from "./fault-model.ts";

/** One of each kind of change, some of which need what others have freed. */
export function stepsFor({ name, clusterSize, virtualSize, qed, options }: DiskKind): FaultStep[] {
  const random = new Random(`failing ${name}`);
  const write = (offset: number, length: number): FaultStep => ({
    kind: "write",
    offset,
    bytes: random.bytes(Math.min(length, virtualSize - offset)),
  });
  const zero = (offset: number, length: number, unmap: boolean): FaultStep => ({
    kind: "zero",
    offset,
    length: Math.min(length, virtualSize - offset),
    unmap,
  });
  const flush: FaultStep = { kind: "flush" };
  const maintain: FaultStep = { kind: "maintain" };
  const grow: FaultStep = { kind: "resize", size: virtualSize + 70 * clusterSize };
  const shrink: FaultStep = { kind: "resize", size: virtualSize - 4 * clusterSize };
  // Snapshots of version 2 do not say which size they are of.
  const keepsSize = options.version === 2 && options.snapshots !== undefined;
  return [
    write(clusterSize + 7, 100),
    write(3 * clusterSize - 50, 2 * clusterSize),
    zero(0, 6 * clusterSize, true),
    flush,
    maintain,
    write(5 * clusterSize, clusterSize + 9),
    { kind: "preallocate", offset: 8 * clusterSize + 1, length: 2 * clusterSize },
    zero(8 * clusterSize, clusterSize, false),
    write(virtualSize - 700, 700),
    flush,
    ...(keepsSize ? [] : [grow]),
    write(virtualSize - 10, 10),
    // QED disks do not shrink.
    ...(keepsSize || qed !== undefined ? [] : [shrink]),
    write(9 * clusterSize, 3 * clusterSize),
    flush,
    maintain,
    write(100, 10),
  ];
}

/** Where the L1 table moves, and what is written afterwards needs new L2 tables. */
export function movingSteps({ name, clusterSize, virtualSize }: DiskKind): FaultStep[] {
  const random = new Random(`moving ${name}`);
  const write = (offset: number, length: number): FaultStep => ({
    kind: "write",
    offset,
    bytes: random.bytes(length),
  });
  const tables = (clusterSize * clusterSize) / 8;
  return [
    write(10, 1000),
    { kind: "resize", size: virtualSize * 30 },
    write(2 * tables + 100, 700),
    { kind: "resize", size: virtualSize * 60 },
    write(3 * tables + 100, 700),
    { kind: "flush" },
    { kind: "maintain" },
    write(4 * tables + 100, 700),
  ];
}

/** Where the refcount table moves. */
export function fillingSteps({ name, virtualSize }: DiskKind): FaultStep[] {
  const bytes = new Random(`filling ${name}`).bytes(virtualSize);
  const half = virtualSize / 2;
  return [
    { kind: "write", offset: 0, bytes: bytes.subarray(0, half) },
    { kind: "flush" },
    { kind: "write", offset: half, bytes: bytes.subarray(half) },
    { kind: "zero", offset: 512, length: half, unmap: true },
    { kind: "flush" },
    { kind: "maintain" },
    { kind: "write", offset: 1024, bytes: bytes.subarray(0, 4096) },
  ];
}
