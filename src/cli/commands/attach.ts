/** `tsimgfs attach`: an image as a block device, with its partitions, and a file system of it mounted. */

import fs from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import type { DaemonConfig } from "../../daemon/config.ts";
import { PendingDaemon } from "../../daemon/launch.ts";
import { printable, TsimgfsError, UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { parseMountOptions } from "../../fuse/mount-options.ts";
import { alignColumns } from "../align-columns.ts";
import { Attachment } from "../attach/attachment.ts";
import { type BlockContent, blockContent } from "../attach/block-content.ts";
import { type LoopDevice, makeLoopDevice } from "../attach/loop-devices.ts";
import {
  kernelDevices,
  type PartitionDevice,
  readPartitions,
  withLoopDevice,
} from "../attach/partition-devices.ts";
import { requireRoot } from "../attach/require-root.ts";
import { runTool } from "../attach/run-tool.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { launchUnlessStopped } from "../launch-mount.ts";
import {
  backingPolicyOption,
  formatOption,
  numberOption,
  type Output,
  outputOption,
} from "../options.ts";
import { print, printMessage, printNote } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
  secretsOf,
} from "../secrets.ts";
import { sizeText } from "../size-text.ts";
import { exitStopped, heardSignal, hearStopSignals } from "../stop-signals.ts";

const THREADS = 4;
const PARTITION_MAX = 255;

interface AttachOptions extends SecretOptions {
  readonly readOnly?: boolean;
  readonly partitions?: boolean;
  readonly mount?: string;
  readonly partition?: number;
  readonly format?: FormatName;
  readonly backingPolicy?: BackingPolicy;
  readonly output: Output;
}

export function defineAttach(command: DocumentedCommand): void {
  command
    .description(
      "Attach a qcow2, QED or raw image as a block device: mount it on a private directory, set up a loop device, and print the device and its partitions, with what blkid finds on them. tsimgfs detach undoes all of it. Needs root.",
    )
    .argument("<image>")
    .option("-r, --read-only", "never write; others may read the image meanwhile")
    .option(
      "--partitions",
      "make a device for each partition, even if the kernel reads no partition tables",
    )
    .option(
      "--mount <dir>",
      "mount the only file system, or that of --partition, on this directory",
    )
    .option(
      "--partition <n>",
      "number of the partition to mount",
      numberOption("--partition", 1, PARTITION_MAX),
    )
    .addOption(formatOption("--format <name>"))
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .addOption(outputOption())
    .document({
      examples: [
        ["Mount a partition", "tsimgfs attach --mount /mnt/root --partition 1 vm.qcow2"],
        ["Detach it again", "tsimgfs detach vm.qcow2"],
      ],
      seeAlso: ["detach", "mount", "losetup(8)", "lsblk(8)"],
    })
    .action(attach);
}

/** What was attached. */
interface Attached {
  readonly disk: LoopDevice;
  /** As `DiskPartitions` has it. */
  readonly table: string;
  readonly partitions: readonly PartitionDevice[];
}

/** Where a table is not as it should be, and what becomes of the partitions. */
const DAMAGE: Readonly<Partial<Record<string, string>>> = {
  "gpt-damaged":
    "its partition table, a GPT, is damaged, as is the copy of it; sgdisk --verify tells more",
  "gpt-backup":
    "its partition table, a GPT, is damaged; the partitions are those of the copy at the end of the disk",
};

async function attach(image: string, options: AttachOptions): Promise<void> {
  requireRoot("attach");
  checkMountDirectory(options);
  const attachment = Attachment.ofImage(image);
  refuseAttached(attachment, image);
  hearStopSignals();
  attachment.prepare();
  let isMounted = false;
  try {
    isMounted = await mountImage(image, attachment, options);
  } finally {
    if (!isMounted) attachment.removeDirectory();
  }
  if (!isMounted) exitStopped();
  try {
    const attached = await attachDevices(image, attachment, options);
    const rows = describe(attached);
    await refuseStopped();
    report(image, rows, options);
    const damage = DAMAGE[attached.table];
    if (damage !== undefined) printNote(`${image}: ${damage}`);
  } catch (error) {
    await attachment.takeDown().catch((failure: unknown) => {
      printMessage(failure instanceof Error ? failure.message : String(failure));
    });
    if (heardSignal() !== undefined) exitStopped();
    throw error;
  }
  process.exit(0);
}

async function attachDevices(
  image: string,
  attachment: Attachment,
  options: AttachOptions,
): Promise<Attached> {
  await refuseStopped();
  const readOnly = options.readOnly ?? false;
  const deviceFile = attachment.deviceFile(image);
  const table = readPartitions(deviceFile);
  const loopOptions = { readOnly, sectorSize: table.sectorSize };
  const disk = makeLoopDevice(deviceFile, loopOptions);
  await refuseStopped();
  const partitions: PartitionDevice[] = [];
  for (const partition of kernelDevices(disk, table.partitions)) {
    const isWanted =
      options.partitions ?? (options.mount !== undefined && isChosen(partition, options));
    partitions.push(isWanted ? withLoopDevice(partition, deviceFile, loopOptions) : partition);
    await refuseStopped();
  }
  const attached = { disk, table: table.table, partitions };
  if (options.mount !== undefined) {
    mountFileSystem(fileSystemDevice(image, attached, options), options.mount, { readOnly });
  }
  return attached;
}

function mountFileSystem(
  device: string,
  directory: string,
  { readOnly }: { readOnly: boolean },
): void {
  // mount(8) tells of the place by its full name.
  const place = fs.realpathSync(directory);
  try {
    runTool("mount", [...(readOnly ? ["-o", "ro"] : []), "--", device, place], place);
  } catch (error) {
    if (!(readOnly && error instanceof TsimgfsError && /read-only/.test(error.message)))
      throw error;
    const reason = `${error.message.slice(place.length + 2)} Its journal may have to be replayed first: attach it once without -r`;
    throw new TsimgfsError(error.code, place, reason, { cause: error });
  }
}

const isChosen = ({ number }: PartitionDevice, { partition = number }: AttachOptions): boolean =>
  number === partition;

/** Before anything is made: mount(8) would complain at the very end. */
function checkMountDirectory({ mount, partition }: AttachOptions): void {
  if (mount === undefined) {
    if (partition === undefined) return;
    throw new UsageError("--partition", "says what to mount, and needs --mount DIR");
  }
  const stats = fs.statSync(mount, { throwIfNoEntry: false });
  if (stats === undefined)
    throw new TsimgfsError("ENOENT", mount, "no such directory; make it with mkdir");
  if (!stats.isDirectory()) throw new TsimgfsError("ENOTDIR", mount, "is not a directory");
}

function refuseAttached(attachment: Attachment, image: string): void {
  const [device] = attachment.loopDevices();
  if (device === undefined && !attachment.isMounted) return;
  const place = device === undefined ? attachment.directory : device.path;
  const reason = `is attached already, at ${place}; tsimgfs detach ends that`;
  throw new TsimgfsError("EBUSY", image, reason);
}

/** @returns false: a signal has stopped it */
async function mountImage(
  image: string,
  { directory }: Attachment,
  options: AttachOptions,
): Promise<boolean> {
  const { readOnly = false, format, backingPolicy } = options;
  const config: DaemonConfig = {
    images: [image],
    mountpoint: directory,
    format,
    backingPolicy,
    forceShare: false,
    writing: readOnly
      ? undefined
      : { copyOnRead: true, detectZeroes: "on", discard: "unmap", growable: false },
    transport: "dev-fuse",
    threads: THREADS,
    streaming: undefined,
    snapshot: undefined,
    mountOptions: parseMountOptions([]),
    logFile: undefined,
  };
  const warnings = await launchUnlessStopped(new PendingDaemon(), config, secretsOf(options));
  forgetSecrets();
  warnings?.forEach(printNote);
  return warnings !== undefined;
}

/** The device to mount: of the partition that was asked for, or of the only file system. */
function fileSystemDevice(
  image: string,
  { disk, table, partitions }: Attached,
  { partition: wanted }: AttachOptions,
): string {
  const mountable = partitions.filter(({ device }) => {
    return device !== undefined && blockContent(device.path).usage === "filesystem";
  });
  const known = partitions.map(({ number }) => number).join(", ");
  if (wanted !== undefined) {
    const partition = partitions.find(({ number }) => number === wanted);
    if (partition?.device !== undefined) return partition.device.path;
    const none = DAMAGE[table] ?? "the disk has no partitions";
    const reason = known === "" ? none : `there are only ${known}`;
    throw new TsimgfsError("ENOENT", image, `has no partition ${wanted}: ${reason}`);
  }
  if (partitions.length === 0) {
    const { usage, type } = blockContent(disk.path);
    if (usage === "filesystem") return disk.path;
    const found =
      DAMAGE[table] ?? `the disk has no partitions, and blkid finds ${type ?? "nothing"} on it`;
    throw new UsageError(image, `has no file system to mount: ${found}`);
  }
  const [only, ...others] = mountable;
  if (only?.device !== undefined && others.length === 0) return only.device.path;
  const reason =
    only === undefined
      ? `none of the partitions ${known} has a file system`
      : `partitions ${mountable.map(({ number }) => number).join(", ")} have file systems`;
  throw new UsageError(image, `${reason}; --partition N says which one to mount`);
}

interface Row {
  readonly device: string | undefined;
  readonly partition: number | undefined;
  readonly start: number;
  readonly size: number;
  readonly content: BlockContent;
}

function describe({ disk, partitions }: Attached): Row[] {
  return [
    {
      device: disk.path,
      partition: undefined,
      start: 0,
      size: disk.size,
      content: blockContent(disk.path),
    },
    ...partitions.map(({ device, number, start, size, name }) => {
      const content =
        device === undefined ? blockContent(disk.path, { start, size }) : blockContent(device.path);
      return {
        device: device?.path,
        partition: number,
        start,
        size,
        content: { ...content, label: content.label ?? name },
      };
    }),
  ];
}

function report(image: string, rows: readonly Row[], options: AttachOptions): void {
  if (options.output === "json") {
    const devices = rows.map(({ content: { type, label, uuid }, ...row }) => ({
      ...row,
      type,
      label,
      uuid,
    }));
    print(`${JSON.stringify({ image, "mount-point": options.mount, devices }, null, 2)}\n`);
    return;
  }
  const table = rows.map(({ device, partition, size, content: { type, label } }) => [
    device ?? "-",
    partition === undefined ? "-" : String(partition),
    sizeText(size),
    type ?? "-",
    label ?? "-",
  ]);
  const head = ["DEVICE", "PARTITION", "SIZE", "TYPE", "LABEL"];
  print(alignColumns([head, ...table].map((row) => row.map(printable))));
  if (options.mount === undefined && rows.some(({ device }) => device === undefined)) {
    printNote("the kernel reads no partition tables; attach --partitions makes a device for each");
  }
}

/**
 * A signal that asks for an end is answered between steps, each of which is short.
 *
 * @throws {TsimgfsError} there was one
 */
async function refuseStopped(): Promise<void> {
  await nextTurn();
  const signal = heardSignal();
  if (signal !== undefined) throw new TsimgfsError("EIO", "attach", `ended by ${signal}`);
}
