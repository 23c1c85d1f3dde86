/** The snapshot table as a check reads it: what others refuse of it is counted, so that it can be repaired. */

import { offsetOf, sizeOf } from "../../../binary/struct.ts";
import { joinHalves, SAFE_HI_MAX } from "../../../binary/words.ts";
import { FormatError } from "../../../errors.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { SNAPSHOTS_MAX } from "../header.ts";
import {
  SNAPSHOT_ENTRY,
  SNAPSHOT_EXTRA,
  SNAPSHOT_EXTRA_SIZE_MAX,
  SNAPSHOT_TABLE_SIZE_MAX,
} from "../snapshot-table.ts";
import type { CheckedImage } from "./check-layout.ts";
import type { Findings } from "./findings.ts";

/** QEMU's limit of an L1 table, entries. */
const L1_ENTRIES_MAX = (32 * 1024 * 1024) / 8;
/** What version 3 requires of the extra data, bytes. */
const V3_EXTRA_SIZE_MIN = sizeOf(SNAPSHOT_EXTRA, "disk_size");

const L1_OFFSET_AT = offsetOf(SNAPSHOT_ENTRY, "l1_table_offset");
const L1_SIZE_AT = offsetOf(SNAPSHOT_ENTRY, "l1_size");
const ID_SIZE_AT = offsetOf(SNAPSHOT_ENTRY, "id_str_size");
const NAME_SIZE_AT = offsetOf(SNAPSHOT_ENTRY, "name_size");
const EXTRA_SIZE_AT = offsetOf(SNAPSHOT_ENTRY, "extra_data_size");

/**
 * strict: what no reader accepts is an error, as for QEMU's check. tolerant: it is a finding, for a
 * repair that is going to write the table anew.
 */
export type SnapshotMode = "strict" | "tolerant";

export interface SnapshotEntry {
  /** Where it is in the table, bytes. */
  readonly start: number;
  /** Bytes of the extra data, and of the id and the name behind it. */
  readonly extraSize: number;
  readonly textSize: number;
  /** Where its L1 table is, bytes; Infinity: past the end of every file. */
  readonly l1TableOffset: number;
  readonly l1Aligned: boolean;
  readonly l1Entries: number;
}

export class SnapshotEntries {
  readonly #findings: Findings;
  /** Those that there is room for. */
  readonly entries: SnapshotEntry[] = [];
  /** Bytes of the table. */
  size = 0;

  constructor(findings: Findings) {
    this.#findings = findings;
  }

  /** Snapshots whose L1 table can be followed; others are damaged. */
  *tables(): Generator<SnapshotEntry> {
    for (const [index, entry] of this.entries.entries()) {
      if (!entry.l1Aligned) {
        this.#findings.add(
          "reference",
          1,
          () => `snapshot ${index}: its L1 table's offset is not cluster aligned`,
        );
      } else if (entry.l1Entries > L1_ENTRIES_MAX) {
        this.#findings.add(
          "reference",
          1,
          () => `snapshot ${index}: an L1 table of ${entry.l1Entries} entries is too large`,
        );
      } else if (entry.l1Entries > 0) {
        yield entry;
      }
    }
  }
}

/**
 * @throws {FormatError} in strict mode: more snapshots, or larger ones, than QEMU's limits
 */
export function readSnapshotEntries(
  image: CheckedImage,
  findings: Findings,
  mode: SnapshotMode,
): SnapshotEntries {
  const { storage, layout } = image;
  const { header, clusterSize } = layout;
  const found = new SnapshotEntries(findings);
  const head = NativeBuffer.allocate(sizeOf(SNAPSHOT_ENTRY));
  const refuse = (count: number, reason: string): void => {
    if (mode === "strict") {
      const site = { offset: header.snapshots_offset + found.size };
      throw new FormatError(storage.path, `${reason}; check -r all repairs that`, site);
    }
    findings.add("snapshot", count, () => reason);
  };
  const count = Math.min(header.nb_snapshots, SNAPSHOTS_MAX);
  if (header.nb_snapshots > SNAPSHOTS_MAX) {
    const reason = `${header.nb_snapshots} snapshots are more than the limit of ${SNAPSHOTS_MAX}`;
    refuse(header.nb_snapshots - SNAPSHOTS_MAX, reason);
  }
  let start = 0;
  for (let index = 0; index < count; index++) {
    storage.readAt(head, 0, head.length, header.snapshots_offset + start);
    const { view } = head;
    const lo = view.getUint32(L1_OFFSET_AT + 4);
    const hi = view.getUint32(L1_OFFSET_AT);
    const extraSize = view.getUint32(EXTRA_SIZE_AT);
    const textSize = view.getUint16(ID_SIZE_AT) + view.getUint16(NAME_SIZE_AT);
    const end = start + head.length + extraSize + textSize;
    if (end > SNAPSHOT_TABLE_SIZE_MAX) {
      const reason = `the snapshot table exceeds ${SNAPSHOT_TABLE_SIZE_MAX} bytes at entry ${index}`;
      refuse(count - index, reason);
      break;
    }
    if (extraSize > SNAPSHOT_EXTRA_SIZE_MAX) {
      refuse(1, `snapshot ${index} has ${extraSize} bytes of extra data, too many`);
    } else if (header.version >= 3 && extraSize < V3_EXTRA_SIZE_MIN) {
      findings.add(
        "snapshot",
        1,
        () => `snapshot ${index} has ${extraSize} bytes of extra data, too few`,
      );
    }
    found.entries.push({
      start,
      extraSize,
      textSize,
      l1TableOffset: hi > SAFE_HI_MAX ? Number.POSITIVE_INFINITY : joinHalves(hi, lo),
      l1Aligned: lo % clusterSize === 0,
      l1Entries: view.getUint32(L1_SIZE_AT),
    });
    found.size = end;
    start = Math.ceil(end / 8) * 8;
  }
  return found;
}
