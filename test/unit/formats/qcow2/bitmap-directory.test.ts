/** The directory of persistent bitmaps, laid out by hand. */

import { describe, expect, it } from "vitest";
import { readBitmapDirectory } from "../../../../src/formats/qcow2/bitmap-directory.ts";
import { MemoryStorage } from "../../memory-storage.ts";

interface LaidOut {
  readonly name: string;
  readonly flags?: number;
  readonly granularityBits?: number;
  readonly extra?: number;
}

function entry({ name, flags = 0, granularityBits = 16, extra = 0 }: LaidOut): Buffer {
  const bytes = Buffer.alloc(Math.ceil((24 + extra + Buffer.byteLength(name)) / 8) * 8);
  bytes.writeBigUInt64BE(2n ** 63n, 0);
  bytes.writeUInt32BE(1, 8);
  bytes.writeUInt32BE(flags, 12);
  bytes.writeUInt8(1, 16);
  bytes.writeUInt8(granularityBits, 17);
  bytes.writeUInt16BE(Buffer.byteLength(name), 18);
  bytes.writeUInt32BE(extra, 20);
  bytes.write(name, 24 + extra);
  return bytes;
}

function read(entries: readonly Buffer[], { count = entries.length, cut = 0 } = {}) {
  const directory = Buffer.concat(entries);
  const storage = new MemoryStorage("disk.qcow2", Buffer.concat([Buffer.alloc(512), directory]));
  const extension = { count, directorySize: directory.length - cut, directoryOffset: 512 };
  return readBitmapDirectory(extension, storage);
}

describe("readBitmapDirectory", () => {
  it("reads names, granularities and flags, past extra data and padding", () => {
    const entries = [
      entry({ name: "backup", flags: 2 }),
      entry({ name: "n".repeat(1023), granularityBits: 9, flags: 3, extra: 16 }),
      entry({ name: "ü", granularityBits: 31, flags: 4 }),
    ];
    expect(read(entries)).toEqual([
      { name: "backup", granularity: 65536, flags: ["auto"] },
      { name: "n".repeat(1023), granularity: 512, flags: ["in-use", "auto"] },
      { name: "ü", granularity: 2 ** 31, flags: [] },
    ]);
  });

  it.each([
    ["more entries than the directory holds", [entry({ name: "a" })], { count: 2 }],
    ["an entry whose head is cut off", [entry({ name: "a" })], { cut: 10 }],
    ["a name that reaches past the end", [entry({ name: "abcdefghijkl" })], { cut: 8 }],
    ["a granularity that no number holds", [entry({ name: "a", granularityBits: 64 })], {}],
  ])("refuses %s", (_what, entries, options) => {
    expect(() => read(entries, options)).toThrow(
      /^disk\.qcow2: bitmap directory entry \d is damaged$/,
    );
  });

  it("refuses extra data of 4 GiB", () => {
    const bytes = entry({ name: "a" });
    bytes.writeUInt32BE(0xffff_ffff, 20);
    expect(() => read([bytes])).toThrow(/entry 0 is damaged/);
  });
});
