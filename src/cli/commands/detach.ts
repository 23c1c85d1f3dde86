/** `tsimgfs detach`: take down what attach has made, and wait until the image is closed. */

import fs from "node:fs";
import { basename } from "node:path";
import { TsimgfsError, UsageError } from "../../errors.ts";
import { Attachment } from "../attach/attachment.ts";
import { listLoopDevices } from "../attach/loop-devices.ts";
import { requireRoot } from "../attach/require-root.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { printNote } from "../print.ts";

export function defineDetach(command: DocumentedCommand): void {
  command
    .description(
      "Unmount the file systems on an attached image, remove its loop devices, and close the image. Returns when all of that is done. An image that is not attached is not an error. Needs root.",
    )
    .argument("<device-or-image>", "the loop device, or the image that was attached")
    .document({
      examples: [
        ["Detach an image", "tsimgfs detach vm.qcow2"],
        ["Detach the image of a loop device", "tsimgfs detach /dev/loop0"],
      ],
      seeAlso: ["attach", "losetup(8)"],
    })
    .action(detach);
}

async function detach(subject: string): Promise<void> {
  requireRoot("detach");
  const attachment = attachmentOf(subject);
  const isThere = attachment?.isThere ?? false;
  if (attachment !== undefined && !isThere) await refuseRenamed(subject);
  await attachment?.takeDown();
  if (!isThere) printNote(`${subject}: is not attached`);
}

/** undefined: nothing is attached to the device. */
function attachmentOf(subject: string): Attachment | undefined {
  const ofImage = Attachment.ofImage(subject);
  // An image may be a block device itself.
  return ofImage.isThere || !isBlockDevice(subject) ? ofImage : attachmentOfDevice(subject);
}

/** A file that was renamed while it was attached may be the image, or a backing file of it. */
async function refuseRenamed(subject: string): Promise<void> {
  const renamed = await Attachment.ofRenamed(subject);
  if (renamed === undefined) return;
  const { attachment, name } = renamed;
  const [device] = attachment.loopDevices();
  const reason = `is in use by what was attached as ${name}; tsimgfs detach ${device?.path ?? name} ends that`;
  throw new TsimgfsError("EBUSY", subject, reason);
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
