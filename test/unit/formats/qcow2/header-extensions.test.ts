/** Header extensions, laid out by hand behind the header. */

import { describe, expect, it } from "vitest";
import { type Qcow2Options, qcow2Bytes } from "../../../support/qcow2-builder.ts";
import {
  AUTOCLEAR_BITMAPS,
  AUTOCLEAR_RAW_DATA_FILE,
  bitmapsExtension,
  EXTENSION_BACKING_FORMAT,
  EXTENSION_DATA_FILE,
  INCOMPATIBLE_DATA_FILE,
  type Qcow2Extension,
} from "../../../support/qcow2-header-builder.ts";
import { openQcow2 } from "../open-image.ts";

const open = (options: Qcow2Options): ReturnType<typeof openQcow2> =>
  openQcow2(qcow2Bytes(options), new Uint8Array(1024));

describe("qcow2 header extensions", () => {
  it("may be missing, without an end marker too", () => {
    expect(open({ endMarker: "missing" }).layout.extensions).toMatchObject({
      backingFormat: undefined,
      featureNames: [],
      dataFileName: undefined,
      bitmaps: undefined,
    });
  });

  it("are found behind others of any length, padded to 8 bytes", () => {
    for (let length = 0; length <= 17; length++) {
      const unknown: Qcow2Extension = { type: 0x1234_5678, data: Buffer.alloc(length, 0xff) };
      const format: Qcow2Extension = { type: EXTENSION_BACKING_FORMAT, data: "qed" };
      const image = open({ backingFile: "base", extensions: [unknown, format] });
      expect(image.backingFile).toEqual({ name: "base", format: "qed" });
    }
  });

  it("end at the end marker", () => {
    const format: Qcow2Extension = { type: EXTENSION_BACKING_FORMAT, data: "qed" };
    const image = open({ backingFile: "base", extensions: [{ type: 0, data: "" }, format] });
    expect(image.backingFile?.format).toBeUndefined();
  });

  it("end where the backing file's name starts", () => {
    // The name would be an extension of 4 GiB.
    const image = open({ backingFile: "\x01\x01\x01\x01\xff\xff\xff\xff", endMarker: "missing" });
    expect(image.backingFile).toBeDefined();
  });

  it("end with cluster 0", () => {
    const filler: Qcow2Extension = { type: 7, data: Buffer.alloc(512 - 112 - 8) };
    expect(() =>
      open({ clusterBits: 9, extensions: [filler], endMarker: "missing" }),
    ).not.toThrow();
  });

  it("must not start so near to the backing file's name that their head does not fit", () => {
    // A filler up to 4 bytes before the name; qemu-img says "Header extension too large" to it.
    const filler: Qcow2Extension = { type: 7, data: Buffer.alloc(400 - 112 - 8) };
    const header = { backing_file_offset: 404, backing_file_size: 4 };
    expect(() => open({ extensions: [filler], endMarker: "missing", header })).toThrow(
      /header extension at 0x190 reaches past the end of the extensions, 0x194/,
    );
  });

  it("must not reach past what is left of cluster 0", () => {
    expect(() =>
      open({ extensions: [{ type: 7, data: "x", length: 65536 - 112 - 8 }] }),
    ).not.toThrow();
    expect(() => open({ extensions: [{ type: 7, data: "x", length: 65536 - 112 - 7 }] })).toThrow(
      /^disk\.qcow2: header extension 0x7 at 0x70 has 65417 bytes, only 65416 are left$/,
    );
    expect(() => open({ extensions: [{ type: 7, data: "x", length: 0xffff_ffff }] })).toThrow(
      /has 4294967295 bytes/,
    );
  });

  it("must not reach into the backing file's name", () => {
    const extensions = [{ type: 7, data: "12345678", length: 17 }];
    expect(() => open({ extensions, backingFile: "base" })).toThrow(/only 16 are left/);
  });
});

describe("the backing format extension", () => {
  it("has at most 15 bytes", () => {
    const at = open({ backingFile: "b", backingFormat: "f".repeat(15) });
    expect(at.backingFile?.format).toBe("f".repeat(15));
    expect(() => open({ backingFile: "b", backingFormat: "f".repeat(16) })).toThrow(
      /backing format has 16 bytes, the limit is 15/,
    );
  });

  it("ends at a NUL", () => {
    expect(open({ backingFile: "b", backingFormat: "raw\0x" }).backingFile?.format).toBe("raw");
  });
});

describe("the external data file extension", () => {
  it("names the data file, raw or not", () => {
    expect(open({ dataFile: "disk.data" }).layout.dataFile).toEqual({
      name: "disk.data",
      raw: false,
    });
    const header = { autoclear_features: AUTOCLEAR_RAW_DATA_FILE };
    expect(open({ dataFile: "disk.data", header }).layout.dataFile?.raw).toBe(true);
  });

  it("counts only with the feature bit", () => {
    const extensions = [{ type: EXTENSION_DATA_FILE, data: "disk.data" }];
    expect(open({ extensions }).layout.dataFile).toBeUndefined();
  });

  it("is needed with the feature bit", () => {
    for (const extensions of [[], [{ type: EXTENSION_DATA_FILE, data: "" }]]) {
      expect(() => open({ incompatible: INCOMPATIBLE_DATA_FILE, extensions })).toThrow(
        expect.objectContaining({
          name: "UnsupportedError",
          message: expect.stringMatching(/needs an external data file, but its header names none/),
        }),
      );
    }
  });

  it("has a limit of 1023 bytes", () => {
    expect(open({ dataFile: "d".repeat(1023) }).layout.dataFile?.name).toHaveLength(1023);
    expect(() => open({ dataFile: "d".repeat(1024) })).toThrow(/data file name has 1024 bytes/);
  });
});

describe("the bitmaps extension", () => {
  const valid = { count: 2, directorySize: 48, directoryOffset: 0x5_0000 };
  const openWith = (extension: Qcow2Extension, bits = AUTOCLEAR_BITMAPS) =>
    open({ extensions: [extension], header: { autoclear_features: bits } }).layout.extensions
      .bitmaps;

  it("says where the directory is", () => {
    expect(openWith(bitmapsExtension(valid))).toEqual(valid);
  });

  it("is stale without its autoclear bit, whatever is in it", () => {
    expect(openWith(bitmapsExtension({ ...valid, count: 0 }), 0n)).toBeUndefined();
  });

  it.each([
    [{ count: 0 }, /0 bitmaps are outside 1\.\.65535/],
    [{ count: 65536 }, /65536 bitmaps are outside/],
    [{ directoryOffset: 0x5_0200 }, /directory offset 0x50200 is not a multiple of 0x10000/],
    [{ directoryOffset: 2n ** 53n }, /bitmap_directory_offset 0x20000000000000 is above/],
    [{ directorySize: 65535 * 1024 + 1 }, /directory of 67107841 bytes exceeds 67107840/],
    [{ directorySize: 56 }, /the bitmap directory has 56 bytes, and its 2 entries 48/],
    [{ directorySize: -1 }, /bitmap_directory_size 0xffffffffffffffff is above/],
  ])("refuses %o", (change, reason) => {
    expect(() => openWith(bitmapsExtension({ ...valid, ...change }))).toThrow(reason);
  });

  it("has 24 bytes, of which bytes 4 to 7 are 0", () => {
    const { type, data } = bitmapsExtension(valid);
    const bytes = Buffer.from(data);
    expect(() => openWith({ type, data: bytes.subarray(0, 23) })).toThrow(/23 bytes, not 24/);
    expect(() => openWith({ type, data: Buffer.concat([bytes, bytes]) })).toThrow(
      /48 bytes, not 24/,
    );
    bytes[7] = 1;
    expect(() => openWith({ type, data: bytes })).toThrow(/reserved field is 1, not 0/);
  });
});
