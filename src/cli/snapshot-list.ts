/** Internal snapshots as qemu-img shows them. */

import { printable } from "../errors.ts";
import type { SnapshotInfo } from "../formats/driver.ts";
import { sizeText } from "./size-text.ts";

/** The lines of a table, its title first. */
export function snapshotTable(snapshots: readonly SnapshotInfo[]): string[] {
  const header = ["ID".padEnd(10), "TAG".padEnd(17), "VM SIZE".padStart(8), "DATE".padStart(20)];
  const rows = snapshots.map((snapshot) => {
    const { vmClock, instructionCount } = snapshot;
    return [
      `${printable(snapshot.id).padEnd(9)} `,
      `${printable(snapshot.name).padEnd(16)} `,
      sizeText(snapshot.vmStateSize).padStart(8),
      dateText(snapshot.seconds).padStart(20),
      clockText(vmClock).padStart(13),
      String(instructionCount ?? "").padStart(11),
    ].join("");
  });
  const titles = [...header, "VM CLOCK".padStart(13), "ICOUNT".padStart(11)].join("");
  return ["Snapshot list:", titles, ...rows];
}

/** Local time, as `2026-11-20 11:59:11`. */
function dateText(seconds: number): string {
  const date = new Date(seconds * 1000);
  const two = (value: number): string => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** Hours, minutes, seconds and milliseconds of a guest clock. */
function clockText(nanoseconds: bigint): string {
  const milliseconds = Number(nanoseconds / 1_000_000n);
  const part = (unit: number, modulus: number, width: number): string =>
    String(Math.floor(milliseconds / unit) % modulus).padStart(width, "0");
  const hours = String(Math.floor(milliseconds / 3_600_000)).padStart(2, "0");
  return `${hours}:${part(60_000, 60, 2)}:${part(1000, 60, 2)}.${part(1, 1000, 3)}`;
}
