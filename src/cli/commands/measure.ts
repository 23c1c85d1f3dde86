/** `tsimgfs measure`: how large an image will be, in the numbers and the form of qemu-img measure. */

import { Option } from "commander";
import { copiedClusters } from "../../block/convert/measure-disk.ts";
import type { CreateRequest } from "../../block/create-image.ts";
import type { Disk } from "../../block/disk.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { checkCreateOptions } from "../../formats/qcow2/create-check.ts";
import { l1EntriesFor } from "../../formats/qcow2/create-layout.ts";
import {
  bitmapsSize,
  fullyAllocatedSize,
  type MeasuredBitmap,
} from "../../formats/qcow2/measure.ts";
import { type CreateFormat, CreateOptions, optionsHelp } from "../create-options.ts";
import { requestedFormat } from "../create-request.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { openOffline } from "../offline-disk.ts";
import { asksForHelp } from "../option-list.ts";
import {
  backingPolicyOption,
  createOptionsOption,
  forceShareOption,
  formatOption,
  type Output,
  outputFormatOption,
  outputOption,
  sizeOption,
  snapshotOption,
} from "../options.ts";
import { print } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
} from "../secrets.ts";
import { snapshotNumber } from "../snapshot-param.ts";

interface MeasureOptions extends SecretOptions {
  readonly format?: FormatName;
  readonly outputFormat: CreateFormat;
  readonly options?: readonly string[];
  readonly size?: number;
  readonly snapshot?: string;
  readonly output: Output;
  readonly forceShare?: boolean;
  readonly backingPolicy?: BackingPolicy;
}

/** The unit of sizes of disks, bytes. */
const SECTOR_SIZE = 512;

/** What is measured, bytes. */
interface Measured {
  readonly required: number;
  readonly fullyAllocated: number;
  readonly bitmaps: number | undefined;
}

/** A disk that would be copied; undefined: only a size is known. */
interface Source {
  readonly disk: Disk;
  /** Undefined: the format has none. */
  readonly bitmaps: readonly MeasuredBitmap[] | undefined;
}

export function defineMeasure(command: DocumentedCommand): void {
  command
    .description("Compute how large a new image will be, as qemu-img measure does.")
    .usage("[options] (--size <size> | <image>)")
    .argument("[image]", "the image to be converted")
    .addOption(
      new Option("--size <size>", "size of a new, empty disk").argParser(sizeOption("--size")),
    )
    .addOption(formatOption("-f, --format <name>"))
    .addOption(outputFormatOption())
    .addOption(createOptionsOption())
    .addOption(snapshotOption("measure"))
    .addOption(outputOption())
    .addOption(forceShareOption())
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      examples: [
        ["Size after a conversion", "tsimgfs measure -O qcow2 vm.raw"],
        ["Size of a new disk", "tsimgfs measure -O qcow2 -o cluster_size=2M --size 1T"],
      ],
      seeAlso: ["convert", "create", "qemu-img(1)"],
    })
    .action(measure);
}

function measure(image: string | undefined, options: MeasureOptions): void {
  const { outputFormat, size } = options;
  const lists = options.options ?? [];
  if (asksForHelp(lists)) {
    print(optionsHelp(outputFormat));
    return;
  }
  if (outputFormat === "qed") throw new UsageError("-O", "qed images cannot be measured");
  if ((image === undefined) === (size === undefined)) {
    throw new UsageError("measure", "needs either an image or --size");
  }
  if (image === undefined && (options.format ?? options.snapshot) !== undefined) {
    throw new UsageError("measure", "-f and -l are about an image, and there is none");
  }
  const list = new CreateOptions(outputFormat, lists);
  if (image === undefined) show(measureImage(list, options, size ?? 0, undefined), options.output);
  else show(measureSource(image, list, options), options.output);
}

function measureSource(image: string, list: CreateOptions, options: MeasureOptions): Measured {
  const opened = openOffline(image, options);
  forgetSecrets();
  try {
    const top = opened.disk.chain.image;
    const { snapshot } = options;
    const disk =
      snapshot === undefined
        ? opened.disk
        : opened.disk.openSnapshot(snapshotNumber(top, snapshot));
    const bitmaps = bitmapsOf(top.describe().specific);
    return measureImage(list, options, disk.virtualSize, { disk, bitmaps });
  } finally {
    opened.close();
  }
}

function measureImage(
  list: CreateOptions,
  { outputFormat }: MeasureOptions,
  size: number,
  source: Source | undefined,
): Measured {
  const format = requestedFormat(outputFormat, outputFormat, list);
  if (format.name !== "qcow2") {
    const bytes = Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE;
    return { required: bytes, fullyAllocated: bytes, bitmaps: undefined };
  }
  const { clusterSize, version } = format.options;
  // As QEMU: what cannot be made has no size.
  checkCreateOptions({ ...format.options, virtualSize: size, backingFile: undefined }, "measure");
  const virtualSize = Math.ceil(size / clusterSize) * clusterSize;
  l1EntriesFor({ ...format.options, virtualSize }, "measure");
  const fullyAllocated = fullyAllocatedSize({ ...format.options, virtualSize });
  const data = dataSize(list, format.options, virtualSize, source);
  return {
    required: fullyAllocated - virtualSize + data,
    fullyAllocated,
    bitmaps:
      version >= 3 && source?.bitmaps !== undefined
        ? bitmapsSize(source.bitmaps, size, clusterSize)
        : undefined,
  };
}

type Qcow2Request = Extract<CreateRequest["format"], { readonly name: "qcow2" }>["options"];

/** Bytes of the data clusters. */
function dataSize(
  list: CreateOptions,
  { clusterSize, preallocation }: Qcow2Request,
  virtualSize: number,
  source: Source | undefined,
): number {
  if (preallocation === "full" || preallocation === "falloc") return virtualSize;
  if (source === undefined) return 0;
  // Nobody knows how much of it the backing file has.
  if (list.text("backing_file") !== undefined) return virtualSize;
  return copiedClusters(source.disk, clusterSize);
}

/** The persistent bitmaps that `info` says an image has; undefined: it could have none. */
function bitmapsOf(specific: unknown): MeasuredBitmap[] | undefined {
  const data = fieldOf(specific, "data");
  if (fieldOf(data, "compat") !== "1.1") return undefined;
  const bitmaps = fieldOf(data, "bitmaps");
  if (!Array.isArray(bitmaps)) return [];
  return bitmaps.map((bitmap) => ({
    name: String(fieldOf(bitmap, "name")),
    granularity: Number(fieldOf(bitmap, "granularity")),
  }));
}

function fieldOf(value: unknown, name: string): unknown {
  return value !== null && typeof value === "object" ? Reflect.get(value, name) : undefined;
}

function show({ required, fullyAllocated, bitmaps }: Measured, output: Output): void {
  if (output === "json") {
    const json = { bitmaps, required, "fully-allocated": fullyAllocated };
    print(`${JSON.stringify(json, null, 4)}\n`);
    return;
  }
  print(`required size: ${required}\nfully allocated size: ${fullyAllocated}\n`);
  if (bitmaps !== undefined) print(`bitmaps size: ${bitmaps}\n`);
}
