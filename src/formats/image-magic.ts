/** What the first sector of a file says it is, to programs that probe. Source: QEMU's format drivers. */

/** Bytes that programs look at. */
export const MAGIC_SECTOR_SIZE = 512;

const ascii = (text: string): Uint8Array => Buffer.from(text, "latin1");

/** Where magic bytes are, and of which format. */
// biome-ignore format: a table reads in columns
const MAGICS: readonly (readonly [format: string, offset: number, bytes: Uint8Array])[] = [
  ["qcow",      0,    ascii("QFI\xfb")],
  ["qed",       0,    ascii("QED\0")],
  ["vmdk",      0,    ascii("KDMV")],
  ["vmdk",      0,    ascii("COWD")],
  ["vmdk",      0,    ascii("# Disk DescriptorFile")],
  ["vdi",       0x40, ascii("\x7f\x10\xda\xbe")],
  ["vhdx",      0,    ascii("vhdxfile")],
  ["vpc",       0,    ascii("conectix")],
  ["parallels", 0,    ascii("WithoutFreeSpace")],
  ["parallels", 0,    ascii("WithouFreSpacExt")],
  ["bochs",     0,    ascii("Bochs Virtual HD Image")],
  ["cloop",     0,    ascii("#!/bin/sh\n#V2.0 Format\nmodprobe cloop")],
  ["luks",      0,    ascii("LUKS\xba\xbe")],
];

/**
 * A VMDK descriptor without a magic: comments and lines of spaces are skipped, then comes the version. It
 * names files of the host, which QEMU opens. Source: QEMU's VMDK driver.
 */
const VMDK_DESCRIPTOR = /^(?:#[^\n]*\n| +\r?\n)*version=[123]\r?\n/;

/** The image format that a first sector would be taken for, or undefined: a raw disk. */
export function magicOf(sector: Uint8Array): string | undefined {
  const found = MAGICS.find(([, offset, bytes]) =>
    bytes.every((byte, index) => sector[offset + index] === byte),
  );
  if (found !== undefined) return found[0];
  return VMDK_DESCRIPTOR.test(Buffer.from(sector).toString("latin1")) ? "vmdk" : undefined;
}
