// Images of all kinds to convert: what they hold is laid down by qemu-io, and differs in density and alignment.

import { truncate } from "node:fs/promises";
import { join } from "node:path";
import { createImage, type ImageFormat, qemuIo } from "./qemu.ts";
import { run } from "./run.ts";

const KIB = 1024;
export const CONVERT_SIZE = 6 * 1024 * KIB;

export interface ConvertSource {
  readonly name: string;
  readonly format: ImageFormat;
  readonly options?: Readonly<Record<string, string | number>>;
  /** A backing file of this format, which is shorter. */
  readonly backing?: ImageFormat;
  /** What is written becomes compressed. */
  readonly compressed?: boolean;
  /** A raw file of an odd length. */
  readonly odd?: boolean;
}

export const CONVERT_SOURCES: readonly ConvertSource[] = [
  { name: "sparse raw", format: "raw" },
  { name: "raw of an odd length", format: "raw", odd: true },
  { name: "v2 of 4k clusters", format: "qcow2", options: { compat: "0.10", cluster_size: 4096 } },
  { name: "v3", format: "qcow2" },
  {
    name: "sub-clusters over qcow2",
    format: "qcow2",
    options: { extended_l2: "on" },
    backing: "qcow2",
  },
  { name: "compressed over raw", format: "qcow2", compressed: true, backing: "raw" },
  { name: "2M clusters", format: "qcow2", options: { cluster_size: 2 ** 21 } },
  { name: "512 byte clusters", format: "qcow2", options: { cluster_size: 512 } },
  { name: "QED over qcow2", format: "qed", backing: "qcow2" },
];

/** Data next to zeros, zeros that are data, and pieces of sectors: the same in every image. */
const COMMANDS = [
  "write -P 1 0 64k",
  "write -P 2 100k 4k",
  "write -P 0 128k 200k",
  "write -P 3 1000k 513k",
  "write -P 4 1792k 512",
  "write -P 0 2M 1M",
  "write -P 5 2100k 1536",
  "write -P 6 4000k 1M",
  "write -z 4500k 100k",
];

const COMPRESSED_COMMANDS = [
  "write -c -P 1 0 64k",
  "write -c -P 2 1M 512k",
  "write -c -P 0 2M 128k",
  "write -P 3 3M 70k",
];

/** Makes the image in a directory; returns its path. */
export async function makeConvertSource(
  directory: string,
  { format, options, backing, compressed = false, odd = false }: ConvertSource,
): Promise<string> {
  const path = join(directory, `source.${format}`);
  if (backing !== undefined) {
    const base = join(directory, `base.${backing}`);
    await createImage(base, backing, { size: CONVERT_SIZE / 2 + 1024 * KIB });
    await qemuIo(base, backing, ["write -P 7 0 300k", "write -P 8 2500k 900k"]);
    await createImage(path, format, {
      size: CONVERT_SIZE,
      ...(options === undefined ? {} : { options }),
      backing: { file: base, format: backing },
    });
  } else await createImage(path, format, { size: CONVERT_SIZE, ...(options && { options }) });
  await qemuIo(path, format, compressed ? COMPRESSED_COMMANDS : COMMANDS);
  if (odd) await truncate(path, CONVERT_SIZE - 100);
  return path;
}

/** Expects that both images show the same, as qemu-img says. */
export async function expectSameDisk(
  [a, aFormat]: readonly [path: string, format: ImageFormat],
  [b, bFormat]: readonly [path: string, format: ImageFormat],
): Promise<void> {
  await run("qemu-img", ["compare", "-f", aFormat, "-F", bFormat, a, b]);
}
