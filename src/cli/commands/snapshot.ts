/** `tsimgfs snapshot`: internal snapshots of an image, or of a device in a mount, as qemu-img snapshot. */

import { describeImage } from "../../block/describe-image.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { jsonSnapshot } from "../../block/snapshot-json.ts";
import type { SnapshotAction } from "../../block/snapshots.ts";
import { StorageError, TsimgfsError, UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { writableDeviceOf } from "../mounted-device.ts";
import {
  changeMountedSnapshots,
  isMountedDevice,
  readMountedSnapshots,
} from "../mounted-snapshots.ts";
import { type OfflineDisk, openOffline, PLAIN_WRITING } from "../offline-disk.ts";
import {
  backingPolicyOption,
  forceShareOption,
  formatOption,
  type Output,
  outputOption,
} from "../options.ts";
import { print } from "../print.ts";
import { snapshotTable } from "../snapshot-list.ts";

interface SnapshotCommandOptions {
  readonly list?: boolean;
  readonly create?: string;
  readonly apply?: string;
  readonly delete?: string;
  readonly output: Output;
  readonly format?: FormatName;
  readonly backingPolicy?: BackingPolicy;
  readonly forceShare?: boolean;
}

/** What is to be done with which snapshot. */
interface Request {
  readonly action: SnapshotAction;
  readonly name: string;
}

const ACTIONS = ["create", "apply", "delete"] as const;

export function defineSnapshot(command: DocumentedCommand): void {
  command
    .description(
      "List, create, apply or delete internal snapshots of a qcow2 image, mounted or not.",
    )
    .argument("<image>", "an image that is not in use, or the device of a mounted one")
    .option("-l, --list", "list the snapshots (the default)")
    .option("-c, --create <name>", "create a snapshot of the disk as it is now", theOnlyOne)
    .option(
      "-a, --apply <name>",
      "restore the disk from a snapshot, given by name or ID",
      theOnlyOne,
    )
    .option("-d, --delete <name>", "delete the snapshot of this name", theOnlyOne)
    .addOption(outputOption())
    .addOption(formatOption("-f, --format <name>"))
    .addOption(backingPolicyOption())
    .addOption(forceShareOption())
    .document({
      examples: [
        ["Take a snapshot", "tsimgfs snapshot -c before-upgrade vm.qcow2"],
        ["Go back to it", "tsimgfs snapshot -a before-upgrade vm.qcow2"],
      ],
      seeAlso: ["mount", "info", "qemu-img(1)"],
    })
    .action(snapshot);
}

function snapshot(image: string, options: SnapshotCommandOptions): void {
  const requests = ACTIONS.flatMap((action): Request[] => {
    const name = options[action];
    return name === undefined ? [] : [{ action, name }];
  });
  if (requests.length + (options.list === true ? 1 : 0) > 1) throw mixed();
  const [request] = requests;
  if (request === undefined) list(image, options);
  else if (options.forceShare === true) {
    throw new UsageError("--force-share", "is for -l only: what two write to is lost");
  } else change(image, request, options);
}

/** The name of a snapshot, where the same was not asked for before. */
function theOnlyOne(name: string, previous: string | undefined): string {
  if (previous === undefined) return name;
  throw mixed();
}

function mixed(): UsageError {
  return new UsageError("snapshot", "-l, -c, -a and -d cannot be mixed, nor repeated");
}

function list(image: string, { output, format, forceShare = false }: SnapshotCommandOptions): void {
  const snapshots = isMountedDevice(image)
    ? readMountedSnapshots(image)
    : describeImage(image, { format, forceShare }).snapshots;
  if (output === "json") {
    print(`${JSON.stringify(snapshots.map(jsonSnapshot), null, 4)}\n`);
  } else if (snapshots.length > 0) {
    print(`${snapshotTable(snapshots).join("\n")}\n`);
  }
}

function change(image: string, { action, name }: Request, options: SnapshotCommandOptions): void {
  if (isMountedDevice(image)) {
    changeMountedSnapshots(image, action, name);
    return;
  }
  const disk = open(image, options);
  try {
    disk.disk.changeSnapshots(action, name);
  } finally {
    disk.close();
  }
}

function open(image: string, { format, backingPolicy }: SnapshotCommandOptions): OfflineDisk {
  try {
    const writing = { policy: PLAIN_WRITING };
    return openOffline(image, { format, backingPolicy, onlyTables: true }, writing);
  } catch (error) {
    const isInUse = error instanceof StorageError && error.code === "EAGAIN";
    const device = isInUse && error.path === image ? writableDeviceOf(image) : undefined;
    if (device === undefined) throw error;
    throw new TsimgfsError("EAGAIN", image, `is mounted; name its device instead, ${device}`, {
      cause: error,
    });
  }
}
