/** Internal snapshots as qemu-img shows them. */

import { printable } from "../errors.ts";
import type { JsonValue, SnapshotInfo } from "../formats/driver.ts";
import { sizeText } from "./size-text.ts";

const NANOSECONDS = 1_000_000_000n;

/** In the fields of qemu-img info. */
export function jsonSnapshot(snapshot: SnapshotInfo): Record<string, JsonValue> {
  const json: Record<string, JsonValue> = {
    id: snapshot.id,
    name: snapshot.name,
    "vm-state-size": snapshot.vmStateSize,
    "date-sec": snapshot.seconds,
    "date-nsec": snapshot.nanoseconds,
    "vm-clock-sec": Number(snapshot.vmClock / NANOSECONDS),
    "vm-clock-nsec": Number(snapshot.vmClock % NANOSECONDS),
  };
  if (snapshot.instructionCount !== undefined) json["icount"] = Number(snapshot.instructionCount);
  return json;
}

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
