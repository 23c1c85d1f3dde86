/** The snapshot table: extra data of all sizes, tables longer than a read, and limits. */

import { describe, expect, it } from "vitest";
import { readQcow2Layout } from "../../../../src/formats/qcow2/layout.ts";
import {
  type Qcow2Snapshot,
  readSnapshotTable,
} from "../../../../src/formats/qcow2/snapshot-table.ts";
import { buildQcow2, qcow2Bytes } from "../../../support/qcow2-builder.ts";
import { writeBe } from "../../../support/qcow2-header-builder.ts";
import type { Qcow2Snapshot as LaidOut } from "../../../support/qcow2-snapshot-builder.ts";
import { encodeSnapshot } from "../../../support/qcow2-snapshot-builder.ts";
import { Random } from "../../../support/random.ts";
import { MemoryStorage } from "../../memory-storage.ts";

const CLUSTER = 65536;
const VIRTUAL_SIZE = 1024 * 1024;

/** An image of one empty disk whose snapshot table is `entries`, at the end of the file. */
function readTable(entries: readonly Buffer[], count = entries.length): Qcow2Snapshot[] {
  const image = buildQcow2({ virtualSize: VIRTUAL_SIZE });
  const tableOffset = image.bytes.length;
  image.setHeader("nb_snapshots", count).setHeader("snapshots_offset", tableOffset);
  const storage = new MemoryStorage("disk.qcow2", Buffer.concat([image.bytes, ...entries]));
  return [
    ...readSnapshotTable(readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: true }), storage),
  ];
}

function entry(snapshot: LaidOut, index = 0): Buffer {
  const l1 = { offset: 3 * CLUSTER, entries: 1 };
  return encodeSnapshot(snapshot, { index, l1, virtualSize: VIRTUAL_SIZE });
}

/** Extra data with these bytes: VM state size 7, disk size 5 MiB, icount 9, then ones. */
function extraData(length: number): Buffer {
  const extra = Buffer.alloc(Math.max(24, length), 0xff);
  writeBe(extra, 0, 8, 7);
  writeBe(extra, 8, 8, 5 * VIRTUAL_SIZE);
  writeBe(extra, 16, 8, 9);
  return extra.subarray(0, length);
}

describe("readSnapshotTable", () => {
  it("reads nothing where there are no snapshots", () => {
    const storage = new MemoryStorage("disk.qcow2", qcow2Bytes());
    const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: true });
    const before = storage.reads.length;
    expect([...readSnapshotTable(layout, storage)]).toEqual([]);
    expect(storage.reads).toHaveLength(before);
  });

  it("reads every field", () => {
    const laidOut = entry({
      id: "12",
      name: "before upgrade",
      extra: extraData(24),
      fields: { date_sec: 0xffff_fffe, date_nsec: 999_999_999, vm_clock_nsec: -1 },
    });
    expect(readTable([laidOut])).toEqual([
      {
        id: "12",
        name: "before upgrade",
        vmStateSize: 7,
        seconds: 0xffff_fffe,
        nanoseconds: 999_999_999,
        vmClock: 2n ** 64n - 1n,
        instructionCount: 9n,
        virtualSize: 5 * VIRTUAL_SIZE,
        l1TableOffset: 3 * CLUSTER,
        l1Entries: 1,
        entryOffset: 0,
        // 40 bytes, 24 of extra data, 2 of the id, 14 of the name.
        entrySize: 80,
      },
    ]);
  });

  it.each([
    { length: 0, vmStateSize: 3, virtualSize: VIRTUAL_SIZE, instructionCount: undefined },
    { length: 4, vmStateSize: 3, virtualSize: VIRTUAL_SIZE, instructionCount: undefined },
    { length: 8, vmStateSize: 7, virtualSize: VIRTUAL_SIZE, instructionCount: undefined },
    { length: 15, vmStateSize: 7, virtualSize: VIRTUAL_SIZE, instructionCount: undefined },
    { length: 16, vmStateSize: 7, virtualSize: 5 * VIRTUAL_SIZE, instructionCount: undefined },
    { length: 23, vmStateSize: 7, virtualSize: 5 * VIRTUAL_SIZE, instructionCount: undefined },
    { length: 24, vmStateSize: 7, virtualSize: 5 * VIRTUAL_SIZE, instructionCount: 9n },
    { length: 32, vmStateSize: 7, virtualSize: 5 * VIRTUAL_SIZE, instructionCount: 9n },
    { length: 1024, vmStateSize: 7, virtualSize: 5 * VIRTUAL_SIZE, instructionCount: 9n },
  ])("takes $length bytes of extra data for what they hold", ({ length, ...expected }) => {
    const fields = { vm_state_size: 3 };
    const [first, second] = readTable([
      entry({ name: "first", extra: extraData(length), fields }),
      entry({ name: "second" }, 1),
    ]);
    expect(first).toMatchObject({ name: "first", ...expected });
    expect(second).toMatchObject({ id: "2", name: "second", virtualSize: VIRTUAL_SIZE });
  });

  it("knows no instruction count where all bits are set", () => {
    expect(readTable([entry({})])[0]?.instructionCount).toBeUndefined();
  });

  it("counts only whole sectors of a disk size", () => {
    expect(readTable([entry({ diskSize: 1000 })])[0]?.virtualSize).toBe(512);
  });

  it("ends ids and names at a NUL, and keeps what QEMU keeps: 127 and 255 bytes", () => {
    const [first, second, third] = readTable([
      entry({ id: "i".repeat(300), name: "n".repeat(65535) }),
      entry({ id: "7\0x", name: "seven\0x" }, 1),
      entry({ id: "", name: "" }, 2),
    ]);
    expect(first).toMatchObject({ id: "i".repeat(127), name: "n".repeat(255) });
    expect(second).toMatchObject({ id: "7", name: "seven" });
    expect(third).toMatchObject({ id: "", name: "" });
  });

  it("reads tables of any entry sizes, longer than one read", () => {
    const random = new Random("snapshot table");
    const laidOut = Array.from({ length: 400 }, (_, index) =>
      entry(
        {
          id: `${index}-${"i".repeat(random.below(100))}`,
          name: `name ${index} ${"n".repeat(random.pick([0, 1, 7, 100, 5000]))}`,
          extra: extraData(random.pick([0, 8, 16, 24, 1000])),
        },
        index,
      ),
    );
    const snapshots = readTable(laidOut);
    expect(snapshots).toHaveLength(400);
    for (const [index, { id, name, seconds }] of snapshots.entries()) {
      expect(id).toMatch(new RegExp(`^${index}-i*$`));
      expect(name).toMatch(new RegExp(`^name ${index} n*$`));
      expect(seconds).toBe(1_700_000_000 + index);
    }
  });

  it("reads entries of the largest size, one after the other", () => {
    const laidOut = Array.from({ length: 9 }, (_, index) =>
      entry(
        {
          id: `${index}`.padEnd(65535, "i"),
          name: `${index}`.padEnd(65535, "n"),
          extra: extraData(1024),
        },
        index,
      ),
    );
    const snapshots = readTable(laidOut);
    expect(snapshots.map(({ id, name }) => [id, name])).toEqual(
      laidOut.map((_, index) => [`${index}`.padEnd(127, "i"), `${index}`.padEnd(255, "n")]),
    );
  });

  it("refuses more than 1024 bytes of extra data", () => {
    expect(() => readTable([entry({ extra: extraData(1025) })])).toThrow(
      /^disk\.qcow2: snapshot 0 has 1025 bytes of extra data, the limit is 1024$/,
    );
    const fields = { extra_data_size: 0xffff_ffff };
    expect(() => readTable([entry({}), entry({ fields }, 1)])).toThrow(/snapshot 1 has 4294967295/);
  });

  it.each([
    [{ l1_table_offset: 2n ** 53n }, /snapshot 0: l1_table_offset 0x20000000000000 is above/],
    [{ l1_table_offset: -1 }, /snapshot 0: l1_table_offset 0xffffffffffffffff is above/],
  ])("refuses numbers above 2^53 - 1 in the fixed part: %o", (fields, reason) => {
    expect(() => readTable([entry({ fields })])).toThrow(reason);
  });

  it("refuses a disk size above 2^53 - 1", () => {
    expect(() => readTable([entry({ diskSize: 2n ** 53n })])).toThrow(/disk_size 0x20000000000000/);
  });

  it("refuses a table of more than 64 MiB", () => {
    // Entries past the end of the file are zeros: each has 40 bytes. These two lead far beyond it.
    const fields = { id_str_size: 65535, name_size: 65535, extra_data_size: 1024 };
    const huge = entry({ fields });
    const size = Math.ceil((40 + 1024 + 2 * 65535) / 8) * 8;
    const count = Math.ceil((64 * 1024 * 1024) / size);
    const table = Buffer.alloc(size * count);
    for (let index = 0; index < count; index++) huge.copy(table, index * size, 0, 40);
    expect(() => readTable([table], count)).toThrow(
      /snapshot table exceeds 67108864 bytes at entry/,
    );
  });

  it("takes a table that the file ends within for zeros", () => {
    const snapshots = readTable([entry({})], 3);
    expect(snapshots.map(({ id, name }) => [id, name])).toEqual([
      ["1", "snapshot-1"],
      ["", ""],
      ["", ""],
    ]);
  });
});
