/** `tsimgfs detach`: take down what attach has made, and wait until the image is closed. */

import fs from "node:fs";
import { basename } from "node:path";
import type { Command } from "commander";
import { UsageError } from "../../errors.ts";
import { Attachment } from "../attach/attachment.ts";
import { listLoopDevices } from "../attach/loop-devices.ts";
import { requireRoot } from "../attach/require-root.ts";
import { printMessage } from "../print.ts";

export function defineDetach(command: Command): void {
  command
    .description(
      "Unmount the file systems on an attached image, remove its loop devices, and close it. Returns when all of that is done; what is attached no more is no failure. Needs root.",
    )
    .argument("<device-or-image>", "a loop device or the image, as attach was told it")
    .addHelpText("after", "\nExample:\n  tsimgfs detach vm.qcow2\n  tsimgfs detach /dev/loop0")
    .action(detach);
}

async function detach(subject: string): Promise<void> {
  requireRoot("detach");
  const attachment = isBlockDevice(subject)
    ? attachmentOfDevice(subject)
    : Attachment.ofImage(subject);
  if (attachment === undefined) {
    printMessage(`${subject}: is not attached`);
    return;
  }
  const isAttached = attachment.isMounted || attachment.loopDevices().length > 0;
  await attachment.takeDown();
  if (!isAttached) printMessage(`${subject}: is not attached`);
}

/** undefined: the device has no file, and so nothing is attached to it. */
function attachmentOfDevice(path: string): Attachment | undefined {
  const name = basename(fs.realpathSync(path));
  const device = listLoopDevices().find(
    (loop) =>
      loop.path === `/dev/${name}` || loop.partitions.some((part) => part.path === `/dev/${name}`),
  );
  if (device === undefined) {
    if (/^loop\d/.test(name)) return undefined;
    throw new UsageError(path, "is not a loop device");
  }
  const attachment = Attachment.ofLoopDevice(device);
  if (attachment !== undefined) return attachment;
  throw new UsageError(path, `is not of tsimgfs attach, but a device on ${device.backingFile}`);
}

function isBlockDevice(path: string): boolean {
  return fs.statSync(path, { throwIfNoEntry: false })?.isBlockDevice() ?? false;
}
