/** `tsimgfs resize`: another size for the disk of an image, as qemu-img resize. */

import fs from "node:fs";
import { GROWTH_PREALLOCATIONS, type GrowthPreallocation } from "../../block/disk-resizer.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import {
  parseSizeChange,
  ResizeJob,
  type ResizeRequest,
  sizeAfter,
} from "../../block/resize-request.ts";
import type { WritePolicy } from "../../block/write-policy.ts";
import { printable, StorageError, TsimgfsError, UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { RESIZE_XATTRS } from "../../tree/resize-control.ts";
import { setDeviceAttribute } from "../device-attribute.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { runLongWork } from "../long-work.ts";
import { writableDeviceOf } from "../mounted-device.ts";
import { isMountedDevice } from "../mounted-snapshots.ts";
import { type OfflineDisk, openOffline, PLAIN_WRITING } from "../offline-disk.ts";
import { backingPolicyOption, choiceOption, formatOption, quietOption } from "../options.ts";
import { PiecesWork } from "../pieces-work.ts";
import { print, printMessage } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
} from "../secrets.ts";
import { type StopSignal, signalStatus } from "../stop-signals.ts";

/** What an error of the daemon means; its log says more. */
const REASONS: Readonly<Record<string, string>> = {
  EINVAL: "its image cannot have that size, or no such preallocation",
  EOPNOTSUPP: "its image cannot be resized like that",
  EFBIG: "the size is more than its image can have",
  ENOSPC: "no space is left for the image",
  EINTR: "was interrupted; its disk has the size that it had",
  EIO: "its image is damaged, or cannot be written to",
};

interface ResizeCommandOptions extends SecretOptions {
  readonly shrink?: boolean;
  readonly preallocation: GrowthPreallocation;
  readonly format?: FormatName;
  readonly backingPolicy?: BackingPolicy;
  readonly quiet?: boolean;
}

export function defineResize(command: DocumentedCommand): void {
  command
    .description(
      "Resize the disk of an image, as qemu-img resize does. New space reads as zeros; partitions and file systems on the disk keep their size.",
    )
    .usage("[options] <image> [+|-]<size>")
    .argument("<image>", "an image, or the device of a mounted one")
    .argument(
      "<size>",
      "new size, or a difference with + or -; bytes, or with a suffix k, M, G, T, P",
    )
    .option("--shrink", "allow the disk to shrink; all data beyond its new end is lost")
    .addOption(
      choiceOption(
        "--preallocation <mode>",
        GROWTH_PREALLOCATIONS,
        (modes) => `what to preallocate for the new space: ${modes}`,
      )
        .minor()
        .default("off"),
    )
    .addOption(formatOption("-f, --format <name>"))
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .addOption(quietOption("print nothing"))
    .document({
      examples: [
        ["10 GiB more", "tsimgfs resize vm.qcow2 +10G"],
        ["Cut the disk off at 20 GiB", "tsimgfs resize --shrink vm.qcow2 20G"],
        ["Resize a mounted disk", "tsimgfs resize /mnt/images/vm.raw 40G"],
      ],
      seeAlso: ["info", "mount", "qemu-img(1)"],
    })
    .action(resize);
}

async function resize(image: string, size: string, options: ResizeCommandOptions): Promise<void> {
  const { shrink = false, preallocation, quiet = false } = options;
  const change = parseSizeChange(size);
  if (change === undefined) {
    throw new UsageError(image, `${size} is not a size, such as 512, 64k, +1.5G or -10M`);
  }
  const request = { change, mayShrink: shrink, preallocation };
  if (isMountedDevice(image)) resizeDevice(image, request);
  else if (!(await resizeOffline(image, options, request))) return;
  if (!quiet) print("Image resized.\n");
}

/** @returns false: a signal has stopped it, of which the user knows */
async function resizeOffline(
  image: string,
  options: ResizeCommandOptions,
  request: ResizeRequest,
): Promise<boolean> {
  const policy = { ...PLAIN_WRITING, growable: true };
  const offline = open(image, options, { policy });
  forgetSecrets();
  let signal: StopSignal | undefined;
  try {
    const job = new ResizeJob(offline.disk, request);
    signal = await runLongWork(new PiecesWork(job), { progress: false });
    if (signal !== undefined) job.abandon();
  } finally {
    offline.close();
  }
  if (signal === undefined) return true;
  printMessage(printable(`${image}: stopped; its disk has the size that it had`));
  process.exitCode = signalStatus(signal);
  return false;
}

function open(
  image: string,
  options: ResizeCommandOptions,
  writing: { policy: WritePolicy },
): OfflineDisk {
  try {
    return openOffline(image, options, writing);
  } catch (error) {
    const isInUse = error instanceof StorageError && error.code === "EAGAIN";
    const device = isInUse && error.path === image ? writableDeviceOf(image) : undefined;
    if (device === undefined) throw error;
    const reason = `is mounted; tsimgfs resize ${device} does it there`;
    throw new TsimgfsError("EAGAIN", image, reason, { cause: error });
  }
}

/** Let the daemon do it; the kernel knows the new size when this returns. */
function resizeDevice(device: string, request: ResizeRequest): void {
  // What its format is, the daemon knows.
  const wanted = sizeAfter(request, {
    path: device,
    size: fs.statSync(device).size,
    format: "raw",
  });
  const { mayShrink, preallocation } = request;
  const mode = preallocation === "off" ? "" : `,preallocation=${preallocation}`;
  const name = RESIZE_XATTRS[mayShrink ? "shrink" : "grow"];
  setDeviceAttribute(device, name, `${wanted}${mode}`, REASONS);
  // It looks at a size again when it is asked for: loop devices are not always so curious.
  fs.statSync(device);
}
