/** Images that open although one entry of their tables is damaged: on purpose, in each of the ways that matter. */

import { QCOW2_SAMPLES, qcow2Sample, qedSample } from "./hostile-samples.ts";
import type { Qcow2Image, Qcow2Options } from "./qcow2-builder.ts";
import type { QedOptions } from "./qed-builder.ts";

/** A file name and the bytes of an image that opens, though it is damaged. */
export type DamagedImage = readonly [name: string, bytes: Uint8Array];

const TABLE_DAMAGE: readonly (readonly [label: string, change: (image: Qcow2Image) => unknown])[] =
  [
    ["l1-unaligned", (image) => image.setL1(0, 0x1200)],
    ["l1-past-end", (image) => image.setL1(0, 1n << 45n)],
    ["l1-itself", (image) => image.setL1(0, image.region("l1").offset)],
    ["l2-unaligned", (image) => image.setL2(6, image.getL2(6) + 512n)],
    ["l2-past-end", (image) => image.setL2(6, 1n << 45n)],
    ["l2-2-to-55", (image) => image.setL2(6, 1n << 55n)],
    ["l2-all-bits", (image) => image.setL2(6, -1)],
    ["l2-compressed-garbage", (image) => image.setL2(6, (1n << 62n) | image.getL2(6))],
    ["l2-itself", (image) => image.setL2(6, image.region("l2 0").offset)],
    ["snapshot-l1-far", (image) => image.setSnapshot(0, "l1_table_offset", 1n << 50n)],
    ["snapshot-l1-large", (image) => image.setSnapshot(0, "l1_size", 2 ** 22)],
  ];

/** @param more options of every image */
export function damagedQcow2(more: Qcow2Options = {}): DamagedImage[] {
  return QCOW2_SAMPLES.flatMap((sample) =>
    TABLE_DAMAGE.map(([label, change]): DamagedImage => {
      const image = qcow2Sample(sample, more);
      change(image);
      return [`${sample.replaceAll(" ", "-")}-${label}.qcow2`, image.bytes];
    }),
  );
}

/** @param more options of every image */
export function damagedQed(more: QedOptions = {}): DamagedImage[] {
  return [
    ["l1-unaligned.qed", qedSample(more).setL1(0, 0x1001).bytes],
    ["l1-header.qed", qedSample(more).setL1(0, 64).bytes],
    ["l2-past-end.qed", qedSample(more).setL2(6, 1n << 45n).bytes],
    ["l2-all-bits.qed", qedSample(more).setL2(6, -1).bytes],
  ];
}
