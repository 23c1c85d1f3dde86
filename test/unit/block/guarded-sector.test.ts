/** The first sector of a raw disk whose format was guessed: no guest may make an image of it. */

import { describe, expect, it } from "vitest";
import type { FormatName } from "../../../src/formats/driver.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { Random } from "../../support/random.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const SIZE = 65536;
const content = new Random("guarded sector").bytes(SIZE);
const NAME = "disk.raw";

/** Calls `body` with a raw disk; gives the bytes of its file afterwards. */
async function bytesAfter(
  format: FormatName | undefined,
  body: (disk: WritableDisk) => void,
  before: Uint8Array = content,
): Promise<Buffer> {
  return await withDiskFiles(async (files) => {
    files.put(NAME, before);
    files.use(NAME, body, { format });
    return files.bytes(NAME);
  });
}

const REFUSED = {
  name: "TsimgfsError",
  code: "EPERM",
  message: expect.stringMatching(
    /disk\.raw: a write would make it look like a \w+ image; .*--format raw/,
  ),
};

function expectRefused(action: () => void): void {
  expect(action).toThrow(expect.objectContaining(REFUSED));
}

describe("a raw disk whose format was guessed", () => {
  it.each([
    { format: "qcow2", magic: "QFI\xfb", offset: 0 },
    { format: "QED", magic: "QED\0", offset: 0 },
    { format: "VMDK", magic: "KDMV", offset: 0 },
    { format: "VDI", magic: "\x7f\x10\xda\xbe", offset: 64 },
    { format: "VMDK descriptor", magic: "#\nversion=1\n", offset: 0 },
  ])("refuses the magic of $format, in any number of pieces", async ({ magic, offset }) => {
    const bytes = Buffer.from(magic, "latin1");
    const before = Buffer.from(content);
    const last = offset + bytes.length - 1;
    // Random content completes the magic once in 256 seeds.
    before[last] = ~bytes.readUInt8(bytes.length - 1);
    const act = (disk: WritableDisk): void => {
      expectRefused(() => disk.write(offset, bytes));
      expectRefused(() => disk.write(0, Buffer.concat([before.subarray(0, offset), bytes])));
      // All but the last byte is no magic yet.
      disk.write(offset, bytes.subarray(0, -1));
      expectRefused(() => disk.write(last, bytes.subarray(-1)));
    };
    const result = await bytesAfter(undefined, act, before);
    const expected = Buffer.from(before);
    bytes.copy(expected, offset, 0, bytes.length - 1);
    expectBytes(result, expected);
  });

  it("writes nothing at all of a write that it refuses", async () => {
    const result = await bytesAfter(undefined, (disk) => {
      const bytes = Buffer.alloc(SIZE, 0x11);
      bytes.write("QFI\xfb", "latin1");
      for (const length of [4, 512, 513, 4096, SIZE]) {
        expectRefused(() => disk.write(0, bytes.subarray(0, length)));
      }
    });
    expectBytes(result, content);
  });

  it("takes all other writes to it, of any offset and length", async () => {
    const random = new Random("unguarded writes");
    const expected = Buffer.from(content);
    const result = await bytesAfter(undefined, (disk) => {
      for (let round = 0; round < 200; round++) {
        const offset = random.below(600);
        const bytes = random.bytes(random.below(1200));
        disk.write(offset, bytes);
        bytes.copy(expected, offset);
      }
      disk.fill(0, 512, 0);
      expected.fill(0, 0, 512);
      expectBytes(disk.read(), expected);
    });
    expectBytes(result, expected);
  });

  it("takes a magic anywhere else", async () => {
    const magic = Buffer.from("QFI\xfb", "latin1");
    const expected = Buffer.from(content);
    const result = await bytesAfter(undefined, (disk) => {
      for (const offset of [1, 100, 510, 512, 4096]) {
        disk.write(offset, magic);
        magic.copy(expected, offset);
      }
    });
    expectBytes(result, expected);
  });

  it("does not become an image by zeros either", async () => {
    const before = Buffer.from(content);
    before.write("QEDx\0\0");
    const result = await bytesAfter(
      undefined,
      (disk) => {
        expectRefused(() => disk.disk.writeZeroes(3, 1, { unmap: true }));
        expectRefused(() => disk.disk.writeZeroes(3, 1, { unmap: false }));
        expectRefused(() => disk.fill(3, 1, 0));
        expectRefused(() => disk.disk.writeZeroes(3, SIZE - 3, { unmap: true }));
      },
      before,
    );
    expectBytes(result, before);
  });

  it("may be zeroed as a whole", async () => {
    const result = await bytesAfter(undefined, (disk) => {
      disk.disk.writeZeroes(0, SIZE, { unmap: true });
      disk.write(10, Buffer.from("a"));
      disk.disk.writeZeroes(5, 100, { unmap: false });
    });
    expectBytes(result, Buffer.alloc(SIZE));
  });

  it("may be shorter than a sector", async () => {
    await withDiskFiles(async (files) => {
      files.put(NAME, Buffer.alloc(100, 1));
      files.use(NAME, (disk) => {
        expectRefused(() => disk.write(0, Buffer.from("KDMV")));
        disk.write(90, Buffer.from("abc"));
        disk.write(400, Buffer.from("def"));
      });
      const bytes = files.bytes(NAME);
      expect(bytes.toString("latin1", 90, 93)).toBe("abc");
      expect(bytes.toString("latin1", 400, 403)).toBe("def");
    });
  });
});

describe("a disk whose format was stated", () => {
  it("takes any first sector", async () => {
    const result = await bytesAfter("raw", (disk) =>
      disk.write(0, Buffer.from("QFI\xfb", "latin1")),
    );
    expect(result.toString("latin1", 0, 4)).toBe("QFI\xfb");
  });

  it("or that has a magic of its own takes any first sector", async () => {
    await withDiskFiles(async (files) => {
      files.put("disk.qcow2", qcow2Bytes({ clusterBits: 9, virtualSize: 65536 }));
      files.use("disk.qcow2", (disk) => disk.write(0, Buffer.from("QFI\xfb", "latin1")));
      const flat = await files.converted("disk.qcow2");
      expect(flat.toString("latin1", 0, 4)).toBe("QFI\xfb");
    });
  });
});
