// Disk sizes: zero, one sector, one before and after a cluster boundary, unallocated, and raw files of odd lengths.

import { open, truncate, writeFile } from "node:fs/promises";
import { createImage, qemuIo } from "../support/qemu.ts";
import { describeConformance, type Recipe } from "./suite.ts";

const SIZES = [0, 512, 65024, 65536, 66048, 1_048_576, 5_000_192] as const;

const EMPTY: Recipe[] = SIZES.flatMap((size) => [
  {
    name: `qcow2-unallocated-${size}`,
    format: "qcow2",
    make: ({ path }) => createImage(path, "qcow2", { size }),
  },
  ...(size === 0
    ? []
    : [
        {
          name: `qed-unallocated-${size}`,
          format: "qed",
          make: ({ path }: { path: string }) => createImage(path, "qed", { size }),
        } as const,
      ]),
]);

const FULL: Recipe[] = SIZES.filter((size) => size > 0).flatMap((size) =>
  (["qcow2", "qed"] as const).map(
    (format): Recipe => ({
      name: `${format}-ends-in-data-${size}`,
      format,
      make: async ({ path, random }) => {
        await createImage(path, format, { size });
        const pattern = random.between(1, 255);
        await qemuIo(path, format, [
          `write -q -P ${pattern} 0 ${size}`,
          `write -q -P ${pattern ^ 1} ${size - 512} 512`,
        ]);
      },
    }),
  ),
);

const RAW_LENGTHS = [0, 1, 511, 512, 513, 1000, 4095, 4097, 65537, 1_000_003] as const;

const RAW: Recipe[] = RAW_LENGTHS.flatMap((length): Recipe[] => [
  {
    name: `raw-data-${length}`,
    format: "raw",
    make: ({ path, random }) => writeFile(path, random.bytes(length)),
  },
  {
    name: `raw-hole-${length}`,
    format: "raw",
    make: async ({ path }) => {
      await writeFile(path, "");
      await truncate(path, length);
    },
  },
]);

const RAW_SPARSE: Recipe = {
  name: "raw-sparse",
  format: "raw",
  make: async ({ path, random }) => {
    const file = await open(path, "w");
    try {
      await file.truncate(10_000_001);
      for (let index = 0; index < 30; index++) {
        const bytes = random.bytes(random.between(1, 20_000));
        await file.write(bytes, 0, bytes.length, random.below(9_980_000));
      }
    } finally {
      await file.close();
    }
  },
};

describeConformance("unallocated images against qemu-img", EMPTY);
describeConformance("images that end in data against qemu-img", FULL);
describeConformance("raw files against qemu-img", [...RAW, RAW_SPARSE]);
