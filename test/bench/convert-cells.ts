/** The measurements of `convert`, beside `qemu-img convert`: of the whole disk, with the start of the process. */

import { rm } from "node:fs/promises";
import { type FileTarget, MIB } from "./cell.ts";
import { MAIN } from "./launch-tsimgfs.ts";
import { run } from "./run-command.ts";
import type { WriteCell } from "./write-cell.ts";
import { CLUSTER_OPTION } from "./write-images.ts";

export const CONVERT_CELL_NAMES = ["convert-raw", "convert-qcow2"] as const;
export type ConvertCellName = (typeof CONVERT_CELL_NAMES)[number];

export const CONVERT_CELLS: Readonly<Record<ConvertCellName, WriteCell>> = {
  "convert-raw": {
    title: "convert to raw",
    unit: "MiB/s",
    images: ["allocated"],
    outcome: "full",
    measureFile: async (target) => {
      const raw = `${target.image.path}.raw`;
      const rate = await convert(target, ["-O", "raw", target.image.path, raw]);
      await rm(raw);
      return rate;
    },
  },
  "convert-qcow2": {
    title: "convert from raw",
    unit: "MiB/s",
    images: ["allocated"],
    outcome: "full",
    measureFile: async (target) => {
      const { path } = target.image;
      const raw = `${path}.raw`;
      await run(["qemu-img", "convert", "-O", "raw", path, raw], { signal: target.signal });
      await rm(path);
      const rate = await convert(target, ["-O", "qcow2", "-o", CLUSTER_OPTION, raw, path]);
      await rm(raw);
      return rate;
    },
  },
};

async function convert({ name, image, signal }: FileTarget, args: string[]): Promise<number> {
  const { elapsedMs } =
    name === "tsimgfs"
      ? await run([process.execPath, MAIN, "convert", ...args], { signal })
      : await run(["qemu-img", "convert", ...args], { signal });
  return image.virtualSize / MIB / (elapsedMs / 1000);
}
