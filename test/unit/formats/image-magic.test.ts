/** What a first sector is taken for, with qemu-img as the program that must not be misled. */

import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { MAGIC_SECTOR_SIZE, magicOf } from "../../../src/formats/image-magic.ts";
import { asRecord } from "../../support/json.ts";
import { Random } from "../../support/random.ts";
import { attempt, run } from "../../support/run.ts";
import { withScratch } from "../../support/scratch.ts";

function sector(bytes: string | Uint8Array, at = 0): Buffer {
  const result = Buffer.alloc(512);
  (typeof bytes === "string" ? Buffer.from(bytes, "latin1") : Buffer.from(bytes)).copy(result, at);
  return result;
}

/** What qemu-img takes a disk for that starts with this sector: "raw", or what it complains about. */
async function probedByQemu(path: string, first: Uint8Array): Promise<string> {
  fs.writeFileSync(path, first);
  fs.truncateSync(path, 1024 * 1024);
  const { status, stdout, stderr } = await attempt("qemu-img", ["info", "--output=json", path]);
  if (status !== 0) return stderr.trim();
  return String(asRecord(JSON.parse(stdout))["format"]);
}

const MAGICS = [
  { format: "qcow", at: 0, bytes: "QFI\xfb" },
  { format: "qed", at: 0, bytes: "QED\0" },
  { format: "vmdk", at: 0, bytes: "KDMV" },
  { format: "vmdk", at: 0, bytes: "COWD" },
  { format: "vmdk", at: 0, bytes: "# Disk DescriptorFile" },
  { format: "vdi", at: 64, bytes: "\x7f\x10\xda\xbe" },
  { format: "vhdx", at: 0, bytes: "vhdxfile" },
  { format: "vpc", at: 0, bytes: "conectix" },
  { format: "parallels", at: 0, bytes: "WithoutFreeSpace" },
  { format: "parallels", at: 0, bytes: "WithouFreSpacExt" },
  { format: "bochs", at: 0, bytes: "Bochs Virtual HD Image" },
  { format: "cloop", at: 0, bytes: "#!/bin/sh\n#V2.0 Format\nmodprobe cloop" },
  { format: "luks", at: 0, bytes: "LUKS\xba\xbe" },
] as const;

describe("magicOf", () => {
  it("looks at a sector", () => {
    expect(MAGIC_SECTOR_SIZE).toBe(512);
  });

  it.each(MAGICS)("knows $format by $bytes at $at, all of it", ({ format, at, bytes }) => {
    const whole = sector(bytes, at);
    expect(magicOf(whole)).toBe(format);
    for (let index = 0; index < bytes.length; index++) {
      const damaged = Buffer.from(whole);
      damaged[at + index] = (damaged[at + index] ?? 0) ^ 0x20;
      expect(magicOf(damaged), `byte ${index} changed`).toBeUndefined();
    }
    for (const shift of [1, 4, 512 - at - bytes.length]) {
      if (shift > 0) expect(magicOf(sector(bytes, at + shift))).toBeUndefined();
    }
  });

  it.each(MAGICS)("does not read past a short sector for $format", ({ format, at, bytes }) => {
    const whole = sector(bytes, at);
    expect(magicOf(whole.subarray(0, at + bytes.length))).toBe(format);
    const isZero = bytes.endsWith("\0");
    expect(magicOf(whole.subarray(0, at + bytes.length - 1)), String(isZero)).toBeUndefined();
    expect(magicOf(whole.subarray(0, 0))).toBeUndefined();
  });

  it("takes zeros, boot sectors and noise for a disk", () => {
    const random = new Random("image magic");
    const boot = sector("\xeb\x63\x90");
    boot.writeUInt16LE(0xaa55, 510);
    expect(magicOf(sector(""))).toBeUndefined();
    expect(magicOf(boot)).toBeUndefined();
    for (let round = 0; round < 1000; round++) {
      expect(magicOf(random.bytes(512))).toBeUndefined();
    }
  });
});

describe("magicOf beside qemu-img", () => {
  it.each([
    { format: "qcow2", options: [] },
    { format: "qcow", options: [] },
    { format: "qed", options: [] },
    { format: "vdi", options: [] },
    { format: "vhdx", options: [] },
    { format: "vpc", options: [] },
    { format: "parallels", options: [] },
    { format: "vmdk", options: [] },
    { format: "vmdk", options: ["-o", "subformat=monolithicFlat"] },
    { format: "vmdk", options: ["-o", "subformat=twoGbMaxExtentFlat"] },
    { format: "vmdk", options: ["-o", "subformat=streamOptimized"] },
  ])("knows what qemu-img creates as $format $options", async ({ format, options }) => {
    await withScratch("magic", async (directory) => {
      const path = join(directory, "image");
      await run("qemu-img", ["create", "-q", "-f", format, ...options, path, "1M"]);
      const head = Buffer.alloc(512);
      const fd = fs.openSync(path, "r");
      fs.readSync(fd, head, 0, 512, 0);
      fs.closeSync(fd);
      expect(magicOf(head)).toBe(format === "qcow2" ? "qcow" : format);
    });
  });

  it.each([
    ...["1", "2", "3"].flatMap((version) => [`version=${version}\n`, `version=${version}\r\n`]),
    "# Disk DescriptorFile\nversion=1\n",
    "#\nversion=1\n",
    "# one\n# two\n#\nversion=3\r\nCID=1\n",
    " \nversion=1\n",
    "   \r\n# comment\n  \nversion=2\n",
    `${"#".repeat(400)}\nversion=1\n`,
    "QFI\xfb\0\0\0\x01",
    "QFI\xfb\0\0\0\x02",
    "QFI\xfb\0\0\0\x03",
    "QED\0",
    "KDMV",
    "COWD",
    "vhdxfile",
    "conectix",
    "LUKS\xba\xbe\0\x01",
    "WithoutFreeSpace\x02\0\0\0",
    "WithouFreSpacExt\x02\0\0\0",
    "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n",
  ])("knows every start that qemu-img takes for an image: %j", async (start) => {
    await withScratch("magic", async (directory) => {
      const probed = await probedByQemu(join(directory, "disk.bin"), sector(start));
      if (probed !== "raw") expect(magicOf(sector(start)), probed).toBeDefined();
    });
  });
});
