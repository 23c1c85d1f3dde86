// The library: what it reads, writes and says of images is what QEMU reads and says of them afterwards.

import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import type { Image, OpenImageOptions } from "../../src/library/image.ts";
import { openImage, TsimgfsError } from "../../src/library/main.ts";
import { type MapEntry, parseMap } from "../support/disk-map.ts";
import {
  createEncryptedImage,
  encryptedArguments,
  PASSPHRASE,
} from "../support/encrypted-image.ts";
import { qcow2Bytes } from "../support/qcow2-builder.ts";
import { convertToRaw, createImage, type ImageFormat, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";

const FORMATS: readonly ImageFormat[] = ["qcow2", "qed", "raw"];
const SIZE = 3 * 2 ** 20 + 512;

let directory = "";
let image = "";

beforeEach(async () => {
  directory = await makeScratch("library");
  image = join(directory, "disk.qcow2");
  const base = join(directory, "base.qcow2");
  await createImage(base, "qcow2", { size: SIZE - 2 ** 20 });
  await qemuIo(base, "qcow2", ["write -P 1 100k 700k"]);
  await createImage(image, "qcow2", { size: SIZE, backing: { file: base, format: "qcow2" } });
  await qemuIo(image, "qcow2", ["write -P 3 130k 1M", "write -z 512k 64k", "write -c 2M 64k"]);
});

/** What `use` makes of an image, which is closed afterwards. */
function withImage<T>(path: string, options: OpenImageOptions, use: (image: Image) => T): T {
  const opened = openImage(path, options);
  try {
    return use(opened);
  } finally {
    opened.close();
  }
}

/** The code of what `act` throws, which must be one of the errors that are promised. */
function codeOf(act: () => unknown): string | undefined {
  try {
    act();
  } catch (error) {
    if (error instanceof TsimgfsError) return error.code;
    throw error;
  }
  return undefined;
}

async function bytesByQemu(path: string, format: ImageFormat): Promise<Buffer> {
  const raw = join(directory, "by-qemu.raw");
  await convertToRaw(path, format, raw);
  return await readFile(raw);
}

/** All of a disk, in the form of qemu-img map. */
function mapOf(opened: Image): MapEntry[] {
  const runs: unknown[] = [];
  for (let start = 0; start < opened.virtualSize; ) {
    const { hostOffset, ...status } = opened.blockStatus(start);
    runs.push({ start, ...status, ...(hostOffset !== undefined && { offset: hostOffset }) });
    start += status.length;
  }
  return parseMap(runs);
}

describe("reading", () => {
  it("gives the bytes that QEMU reads, of any range, into any memory", async () => {
    const expected = await bytesByQemu(image, "qcow2");
    withImage(image, {}, (opened) => {
      expect(opened).toMatchObject({ format: "qcow2", virtualSize: SIZE, readOnly: true });
      expect(opened.clusterSize).toBe(65536);
      const ranges = [
        ...[0, 1, 131071, SIZE - 1].map((offset) => ({ offset, length: 1 })),
        ...[0, SIZE].map((offset) => ({ offset, length: 0 })),
        { offset: 65535, length: 2 ** 20 },
        { offset: 0, length: SIZE },
      ];
      for (const { offset, length } of ranges) {
        const memories = [
          new Uint8Array(length),
          Buffer.alloc(length + 3).subarray(3),
          new Uint8Array(new SharedArrayBuffer(length)),
        ];
        for (const target of memories) {
          expect(opened.read(target, offset)).toBe(target);
          expect(expected.compare(target, 0, length, offset, offset + length)).toBe(0);
        }
      }
    });
  });

  it("leaves what is around the memory that it fills", () => {
    withImage(image, {}, (opened) => {
      const memory = new Uint8Array(48).fill(9);
      opened.read(memory.subarray(16, 32), 130 * 1024);
      expect([...memory]).toEqual([16, 16, 16].flatMap((n, i) => Array(n).fill(i === 1 ? 3 : 9)));
    });
  });
});

describe("block status", () => {
  it("is that of qemu-img map", async () => {
    const wanted = parseMap(await imageMap(["-f", "qcow2", image]));
    const map = withImage(image, {}, mapOf);
    expect(map).toEqual(wanted);
  });

  it("is no longer than asked for, nor than the disk", () => {
    withImage(image, {}, (opened) => {
      expect(opened.blockStatus(140 * 1024, 7).length).toBe(7);
      expect(opened.blockStatus(SIZE - 1, 2 ** 40).length).toBe(1);
    });
  });
});

describe.each(FORMATS)("writing %s", (format) => {
  it("leaves what QEMU reads, and finds in order", async () => {
    const random = new Random(`library ${format}`);
    const path = join(directory, `written.${format}`);
    await createImage(path, format, { size: SIZE });
    const model = Buffer.alloc(SIZE);
    withImage(path, { format, readOnly: false }, (opened) => {
      const edges = [0, 65535, SIZE - 1].map((offset) => ({ offset, length: 1 }));
      const ranges = Array.from({ length: 30 }, () => {
        const offset = random.between(0, SIZE - 1);
        return { offset, length: random.between(0, Math.min(SIZE - offset, 200_000)) };
      });
      for (const [index, { offset, length }] of [...edges, ...ranges].entries()) {
        const value = index % 4 === 3 ? 0 : index + 1;
        if (value === 0) opened.writeZeroes(offset, length);
        else opened.write(new Uint8Array(length).fill(value), offset);
        model.fill(value, offset, offset + length);
        if (index % 10 === 9) opened.flush();
      }
      expect(model.compare(opened.read(new Uint8Array(SIZE), 0))).toBe(0);
    });
    expect(model.compare(await bytesByQemu(path, format))).toBe(0);
    if (format !== "raw") await run("qemu-img", ["check", "-q", "-f", format, path]);
  });
});

describe("an encrypted image", () => {
  it("is read and written with its passphrase, and not opened without", async () => {
    const path = join(directory, "encrypted.qcow2");
    const encryption = ["encrypt.format=aes", "encrypt.key-secret=key"];
    await createEncryptedImage(path, encryption, "1M");
    const io = ["-c", "write -P 4 0 64k", ...encryptedArguments(path)];
    await run("qemu-io", io);
    expect(codeOf(() => openImage(path))).toBe("EACCES");
    const secret = Buffer.from(PASSPHRASE);
    const bytes = withImage(path, { readOnly: false, secrets: [secret] }, (opened) => {
      secret.fill(0);
      opened.write(new Uint8Array(600).fill(6), 65000);
      return opened.read(new Uint8Array(65600), 0);
    });
    expect(bytes).toEqual(new Uint8Array(65600).fill(4, 0, 65000).fill(6, 65000));
    const { stdout } = await run("qemu-io", [
      ...["-c", "read -P 4 0 65000", "-c", "read -P 6 65000 600"],
      ...encryptedArguments(path),
    ]);
    expect(stdout).not.toMatch(/verification failed/);
  });
});

describe("an encrypted image that is read", () => {
  it.each([0, 1, 2, 3, 5])("fills memory that starts at byte %i of a buffer", async (start) => {
    const path = join(directory, "encrypted.qcow2");
    const encryption = ["encrypt.format=aes", "encrypt.key-secret=key"];
    await createEncryptedImage(path, encryption, "1M");
    await run("qemu-io", ["-c", "write -P 4 0 64k", ...encryptedArguments(path)]);
    const buffer = new Uint8Array(8192 + 8).fill(9);
    withImage(path, { secrets: [Buffer.from(PASSPHRASE)] }, (opened) => {
      opened.read(buffer.subarray(start, start + 8192), 4096);
    });
    expect(buffer).toEqual(new Uint8Array(8192 + 8).fill(9).fill(4, start, start + 8192));
  });
});

describe("statistics", () => {
  it("add up to the file and to the disk as qemu-img maps it, also while it is written to", async () => {
    const { size } = await stat(image);
    const map = parseMap(await imageMap(["-f", "qcow2", image]));
    const bytesAt = (depth: number): number =>
      map.reduce((sum, run) => sum + (run.present && run.depth === depth ? run.length : 0), 0);
    const stats = withImage(image, {}, (opened) => opened.stats());
    expect(stats.file.fileSize).toBe(size);
    expect(stats.dataFile).toBeUndefined();
    expect(stats.layers.map(({ bytes }) => bytes)).toEqual([bytesAt(0), bytesAt(1)]);
    expect(stats.nowhere).toBe(SIZE - bytesAt(0) - bytesAt(1));
    expect(stats.guest).toMatchObject({ zero: 65536, compressed: 65536 });
    withImage(image, { readOnly: false }, (opened) => {
      // The backing file has data there.
      opened.writeZeroes(65536, 65536);
      const { file, guest } = opened.stats();
      expect(guest.zero).toBe(stats.guest.zero + 65536);
      expect(file.usedData + file.usedZero + file.unusedData + file.unusedZero).toBe(file.fileSize);
    });
  });
});

describe("refusals", () => {
  it.each([-1, 0.5, Number.NaN, SIZE - 511, 2 ** 60])("offset %d is not on the disk", (offset) => {
    withImage(image, { readOnly: false }, (opened) => {
      const bytes = new Uint8Array(512);
      expect(codeOf(() => opened.read(bytes, offset))).toBe("EINVAL");
      expect(codeOf(() => opened.write(bytes, offset))).toBe("EINVAL");
      expect(codeOf(() => opened.writeZeroes(offset, 512))).toBe("EINVAL");
      expect(codeOf(() => opened.writeZeroes(0, offset))).toBe(
        offset === SIZE - 511 ? undefined : "EINVAL",
      );
      expect(codeOf(() => opened.blockStatus(offset === SIZE - 511 ? SIZE : offset))).toBe(
        "EINVAL",
      );
    });
  });

  it("nothing is written to an image that is open for reading, as it is by default", async () => {
    const before = await readFile(image);
    withImage(image, {}, (opened) => {
      expect(codeOf(() => opened.write(new Uint8Array(1), 0))).toBe("EROFS");
      expect(codeOf(() => opened.writeZeroes(0, 1))).toBe("EROFS");
      opened.flush();
    });
    expect(before.compare(await readFile(image))).toBe(0);
  });

  it("a closed image is not used; closing it twice does no harm; others have it then", async () => {
    const opened = openImage(image, { readOnly: false });
    opened.write(Uint8Array.of(5), 0);
    expect(codeOf(() => openImage(image))).toBe("EAGAIN");
    opened[Symbol.dispose]();
    opened.close();
    const bytes = new Uint8Array(1);
    const acts = [
      () => opened.read(bytes, 0),
      () => opened.write(bytes, 0),
      () => opened.writeZeroes(0, 1),
      () => opened.blockStatus(0),
      () => opened.stats(),
      () => opened.flush(),
    ];
    expect(acts.map(codeOf)).toEqual(acts.map(() => "EBADF"));
    await qemuIo(image, "qcow2", ["read -P 5 0 1"]);
  });

  it("images that are not there, not valid, or refer to what they may not", async () => {
    const none = join(directory, "none.qcow2");
    expect(codeOf(() => openImage(none))).toBe("ENOENT");
    expect(codeOf(() => openImage(image, { backingPolicy: "none" }))).toBe("EACCES");
    const bad = join(directory, "bad.qcow2");
    await writeFile(bad, (await readFile(image)).fill(0xff, 8, 64));
    expect(() => openImage(bad)).toThrow(new RegExp(`^${bad}: `));
    expect(() => openImage(bad)).toThrow(TsimgfsError);
  });

  it("what is neither bytes, nor a format, nor a policy, from programs without types", () => {
    const options: unknown = JSON.parse('[{"format":"vmdk"},{"backingPolicy":"some"}]');
    for (const wrong of options as OpenImageOptions[]) {
      expect(codeOf(() => openImage(image, wrong))).toBe("EINVAL");
    }
    withImage(image, { readOnly: false }, (opened) => {
      const values: unknown[] = ["bytes", [1, 2, 3], new Uint16Array(3), new ArrayBuffer(3)];
      for (const wrong of values) {
        expect(() => opened.read(wrong as Uint8Array, 0)).toThrow(TypeError);
        expect(() => opened.write(wrong as Uint8Array, 0)).toThrow(TypeError);
      }
    });
  });

  it("offsets and lengths that are no numbers, from programs without types", () => {
    withImage(image, { readOnly: false }, (opened) => {
      for (const wrong of [undefined, null, "0", 0n, {}]) {
        const calls: ["read" | "write" | "writeZeroes" | "blockStatus", readonly unknown[]][] = [
          ["read", [new Uint8Array(1), wrong]],
          ["write", [new Uint8Array(1), wrong]],
          ["writeZeroes", [wrong, 1]],
          ["writeZeroes", [0, wrong]],
          ["blockStatus", [wrong]],
          // Without a length, it is the rest of the disk.
          ["blockStatus", [0, wrong ?? null]],
        ];
        for (const [name, args] of calls) {
          const call = (): unknown => Reflect.apply(opened[name], opened, args);
          expect(call, `${name}(${args.map(String).join(", ")})`).toThrow(TypeError);
        }
      }
      expect(() => opened.read(new Uint8Array(1), "0" as unknown as number)).toThrow(
        /^offset is not a number: string$/,
      );
    });
  });

  it.each<[string, readonly unknown[], RegExp]>([
    ["no path", [], /path is not a string: undefined$/],
    ["null for a path", [null], /path is not a string: null$/],
    ["a number for a path", [5], /path is not a string: number$/],
    ["an object for a path", [new URL("file:///disk.qcow2")], /path is not a string: object$/],
    ["a path with NUL", ["disk\0.qcow2"], /path has a NUL character$/],
    ["null for options", ["disk", null], /options is not an object of options: null$/],
    ["a format for options", ["disk", "raw"], /options is not an object of options: string$/],
    ["an array for options", ["disk", []], /options is not an object of options: array$/],
    ["a misspelt option", ["disk", { readonly: false }], /"readonly"; did you mean readOnly\?$/],
    ["an option of another function", ["disk", { fd: 3 }], /there is no option "fd"$/],
    ["an inherited name", ["disk", { toString: 3 }], /there is no option "toString"$/],
    ["a number for a format", ["disk", { format: 5 }], /options.format is not a string: number$/],
    ["0 for readOnly", ["disk", { readOnly: 0 }], /options.readOnly is not a boolean: number$/],
    ["a policy that is none", ["disk", { backingPolicy: true }], /not a string: boolean$/],
    ["a passphrase as text", ["disk", { secrets: "hush" }], /not an array of Uint8Array: string$/],
    ["several as text", ["disk", { secrets: ["hush"] }], /not an array of Uint8Array: array$/],
    ["one for all below", ["disk", { backingSecrets: Buffer.from("hush") }], /Uint8Array: object$/],
  ])("arguments of another type, from programs without types: %s", (_, args, message) => {
    const open = (): unknown => Reflect.apply(openImage, undefined, args);
    expect(open).toThrow(TypeError);
    expect(open).toThrow(message);
    expect(open).not.toThrow(/hush/);
  });

  it("options that are undefined are as if left out", () => {
    const options = { format: undefined, readOnly: undefined, secrets: undefined };
    expect(withImage(image, options, ({ readOnly }) => readOnly)).toBe(true);
  });

  it("warnings are told, not printed", async () => {
    const base = join(directory, "base.qcow2");
    const overlay = join(directory, "overlay.qcow2");
    await writeFile(overlay, qcow2Bytes({ backingFile: base }));
    const warnings = withImage(overlay, {}, (opened) => opened.warnings);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toMatch(/does not state the format of its backing file/);
  });
});
