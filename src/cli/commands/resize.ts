/** `tsimgfs resize`: another size for the disk of an image, as qemu-img resize. */

import { type Command, Option } from "commander";
import { GROWTH_PREALLOCATIONS, type GrowthPreallocation } from "../../block/disk-resizer.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { parseSizeChange, type ResizeRequest, resizeDisk } from "../../block/resize-request.ts";
import { UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { openOffline, PLAIN_WRITING } from "../offline-disk.ts";
import { backingPolicyOption, formatOption, oneOf } from "../options.ts";
import { print } from "../print.ts";

interface ResizeCommandOptions {
  readonly shrink?: boolean;
  readonly preallocation: GrowthPreallocation;
  readonly format?: FormatName;
  readonly backingPolicy?: BackingPolicy;
  readonly quiet?: boolean;
}

export function defineResize(command: Command): void {
  command
    .description(
      "Change the size of an image's disk, as qemu-img resize does. What is new reads as zeros; partitions and file systems on the disk stay as they are.",
    )
    .usage("[options] <image> [+|-]<size>")
    .argument("<image>")
    .argument(
      "<size>",
      "the new size, or + or - a difference; bytes, or with a suffix k, M, G, T, P",
    )
    .option("--shrink", "let the disk become smaller: all data beyond its new end is lost")
    .addOption(
      new Option(
        "--preallocation <mode>",
        "what the host sets aside for what is new: off, metadata, falloc or full",
      )
        .default("off")
        .argParser(oneOf<GrowthPreallocation>("--preallocation", GROWTH_PREALLOCATIONS)),
    )
    .addOption(formatOption("-f, --format <name>"))
    .addOption(backingPolicyOption())
    .option("-q, --quiet", "print nothing")
    .addHelpText(
      "after",
      "\nExamples:\n  tsimgfs resize vm.qcow2 +10G\n  tsimgfs resize --shrink vm.qcow2 20G",
    )
    .action(resize);
}

function resize(image: string, size: string, options: ResizeCommandOptions): void {
  const { shrink = false, preallocation, quiet = false } = options;
  const change = parseSizeChange(size);
  if (change === undefined) {
    throw new UsageError(image, `${size} is not a size, such as 512, 64k, +1.5G or -10M`);
  }
  resizeOffline(image, options, { change, mayShrink: shrink, preallocation });
  if (!quiet) print("Image resized.\n");
}

function resizeOffline(image: string, options: ResizeCommandOptions, request: ResizeRequest): void {
  const policy = { ...PLAIN_WRITING, growable: true };
  const offline = openOffline(image, options, { policy });
  try {
    resizeDisk(offline.disk, request);
  } finally {
    offline.close();
  }
}
