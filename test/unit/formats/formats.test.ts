/** Which format a file is taken for: as stated, by its magic, or by its name. */

import { describe, expect, it } from "vitest";
import {
  conditionsOf,
  determineFormat,
  isFormatName,
  parseFormatName,
  probeFormat,
  readLayout,
  unlockImage,
} from "../../../src/formats/formats.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { QED_FEATURE_NEED_CHECK, qedBytes } from "../../support/qed-builder.ts";
import { MemoryStorage } from "../memory-storage.ts";

const NO_CACHE = { tableCacheMax: 0, keepsL1: true };
const file = (path: string, bytes: Uint8Array): MemoryStorage => new MemoryStorage(path, bytes);
const zeros = new Uint8Array(1024);

describe("probeFormat", () => {
  it("knows the magic of qcow2 and of QED", () => {
    expect(probeFormat(file("a", qcow2Bytes()))).toBe("qcow2");
    expect(probeFormat(file("a", qedBytes()))).toBe("qed");
    expect(probeFormat(file("a", Uint8Array.of(0x51, 0x46, 0x49, 0xfb)))).toBe("qcow2");
    expect(probeFormat(file("a", Uint8Array.of(0x51, 0x45, 0x44, 0x00)))).toBe("qed");
  });

  it.each([
    ["an empty file", []],
    ["three bytes of a magic", [0x51, 0x46, 0x49]],
    ["the magic one byte later", [0, 0x51, 0x46, 0x49, 0xfb]],
    ["the magic in the other byte order", [0xfb, 0x49, 0x46, 0x51]],
  ])("knows nothing of %s", (_what, bytes) => {
    expect(probeFormat(file("a", Uint8Array.from(bytes)))).toBeUndefined();
  });

  it("reads nothing but the first sector", () => {
    const storage = file("a", qcow2Bytes());
    probeFormat(storage);
    expect(storage.reads).toEqual([{ offset: 0, length: 512 }]);
  });
});

describe("determineFormat", () => {
  it("believes what is stated, without reading the file", () => {
    const storage = file("disk.raw", qcow2Bytes());
    expect(determineFormat(storage, "raw")).toBe("raw");
    expect(determineFormat(file("a", zeros), "qed")).toBe("qed");
    expect(storage.reads).toEqual([]);
  });

  it("believes the magic more than the name", () => {
    expect(determineFormat(file("disk.raw", qcow2Bytes()), undefined)).toBe("qcow2");
    expect(determineFormat(file("disk.qcow2", qedBytes()), undefined)).toBe("qed");
  });

  it.each(["disk.raw", "disk.img", "DISK.IMG", "/a.b/x.Raw"])("takes %s for raw", (path) => {
    expect(determineFormat(file(path, zeros), undefined)).toBe("raw");
  });

  it.each(["disk", "disk.qcow2", "disk.vmdk", "raw", "disk.raw.gz", "img/disk"])(
    "does not guess the format of %s without a magic",
    (path) => {
      expect(() => determineFormat(file(path, zeros), undefined)).toThrow(
        expect.objectContaining({ code: "EINVAL", message: expect.stringMatching(/--format$/) }),
      );
    },
  );
});

describe("format names", () => {
  it("are raw, qcow2 and qed", () => {
    expect(["raw", "qcow2", "qed"].every(isFormatName)).toBe(true);
    expect(["", "Raw", "vmdk", "toString"].some(isFormatName)).toBe(false);
    expect(parseFormatName("qed")).toBe("qed");
    expect(() => parseFormatName("vhdx")).toThrow("--format: vhdx is not one of raw, qcow2, qed");
  });
});

describe("the state of an image", () => {
  const conditions = (format: "raw" | "qcow2" | "qed", bytes: Uint8Array): string[] =>
    conditionsOf(readLayout(format, file("disk", bytes), NO_CACHE));

  it("is worth a word if it is dirty, corrupt, or needs a check", () => {
    expect(conditions("raw", zeros)).toEqual([]);
    expect(conditions("qcow2", qcow2Bytes())).toEqual([]);
    expect(conditions("qed", qedBytes())).toEqual([]);
    expect(conditions("qcow2", qcow2Bytes({ incompatible: 1n }))).toEqual([
      expect.stringMatching(/dirty/),
    ]);
    expect(conditions("qcow2", qcow2Bytes({ incompatible: 3n }))).toHaveLength(2);
    expect(conditions("qed", qedBytes({ features: QED_FEATURE_NEED_CHECK }))).toEqual([
      expect.stringMatching(/need-check/),
    ]);
  });

  it.each([
    [1, "EACCES", /^disk: is encrypted \(AES\): its passphrase is needed, --secret FILE/],
    [2, "EINVAL", /^disk: is encrypted with LUKS, but does not say where the LUKS header is/],
  ])("may be encrypted: method %i", (crypt_method, code, message) => {
    const image = file("disk", qcow2Bytes({ header: { crypt_method } }));
    const layout = readLayout("qcow2", image, NO_CACHE);
    expect(() => unlockImage(layout, image, [], true)).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(message) }),
    );
  });

  it("is readable for raw files and images that are not encrypted", () => {
    for (const format of ["raw", "qcow2"] as const) {
      const image = file("disk", qcow2Bytes());
      expect(unlockImage(readLayout(format, image, NO_CACHE), image, [], true)).toBeUndefined();
    }
  });
});
