/** Internal snapshots as JSON, in the fields of qemu-img info. */

import type { JsonValue, SnapshotInfo } from "../formats/driver.ts";

const NANOSECONDS = 1_000_000_000n;

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
