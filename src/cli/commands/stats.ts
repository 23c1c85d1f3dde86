/** `tsimgfs stats`: what the bytes of an image are for, mounted or not. */

import { allocationOf } from "../../block/allocation-stats.ts";
import { attachChain } from "../../block/attach-disk.ts";
import { Disk } from "../../block/disk.ts";
import { closeChain, openChain } from "../../block/open-chain.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { UsageError } from "../../errors.ts";
import { ClusterCache } from "../../formats/compression/cluster-cache.ts";
import type { FormatName } from "../../formats/driver.ts";
import { statsFieldsText } from "../../tree/stats-fields.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { type MountedStats, readMountedStats } from "../mounted-stats.ts";
import {
  backingPolicyOption,
  forceShareOption,
  formatOption,
  type Output,
  outputOption,
} from "../options.ts";
import { print, printNote } from "../print.ts";
import { statsTable } from "../stats-table.ts";

interface StatsOptions {
  readonly format?: FormatName;
  readonly output: Output;
  readonly backingPolicy?: BackingPolicy;
  readonly forceShare?: boolean;
}

const FIELDS_INTRODUCTION =
  "These are the fields of --output json, and of NAME.stats.json in a mount. For a mount point, --output json prints a list with one object per device.";

export function defineStats(command: DocumentedCommand): void {
  command
    .description(
      "Show what the bytes of an image file are used for, and what its disk consists of. For a mount point or a device in it, show the current state.",
    )
    .argument("<image>", "an image, a mount point, or a device of a mount")
    .addOption(outputOption())
    .addOption(formatOption("-f, --format <name>"))
    .addOption(backingPolicyOption())
    .addOption(forceShareOption())
    .document({
      notes: ["`tsimgfs help stats` explains every field of --output json and of NAME.stats.json."],
      get details() {
        return [FIELDS_INTRODUCTION, { lines: statsFieldsText() }];
      },
      examples: [
        ["What an image uses its space for", "tsimgfs stats vm.qcow2"],
        ["A device of a mount", "tsimgfs stats --output json /mnt/images/vm.raw"],
      ],
      seeAlso: ["map", "top", "info"],
    })
    .action(showStats);
}

function showStats(image: string, options: StatsOptions): void {
  const mounted = readMountedStats(image);
  if (mounted !== undefined && options.format !== undefined) {
    throw new UsageError("--format", `is for images, and ${image} is mounted`);
  }
  const stats = mounted?.stats ?? [imageStats(image, options)];
  if (options.output === "json") {
    // As many as a mount has devices, be it one: a script need not tell one form from the other.
    const json = mounted?.kind === "mount" ? stats : stats[0];
    print(`${JSON.stringify(json, null, 2)}\n`);
    return;
  }
  print(stats.map(statsTable).join("\n"));
}

function imageStats(image: string, options: StatsOptions): MountedStats {
  const { format, backingPolicy, forceShare = false } = options;
  const open = openChain(image, { format, backingPolicy, forceShare, onlyTables: true });
  try {
    for (const warning of open.warnings) printNote(warning);
    const chain = attachChain(open.layers, { clusterCache: new ClusterCache() });
    const [top] = open.layers;
    if (top === undefined) throw new RangeError("a chain has at least one image");
    return {
      format: chain.image.format,
      filename: image,
      "virtual-size": chain.virtualSize,
      "cluster-size": chain.image.clusterSize,
      ...allocationOf(Disk.readOnly(chain), top),
    };
  } finally {
    closeChain(open);
  }
}
