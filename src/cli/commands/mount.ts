/** `tsimgfs mount`: show images as flat raw devices. */

import { type Command, Option } from "commander";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import {
  BITMAP_POLICIES,
  type BitmapPolicy,
  DETECT_ZEROES,
  type DetectZeroes,
  DISCARD,
  type Discard,
  type WritePolicy,
} from "../../block/write-policy.ts";
import type { DaemonConfig } from "../../daemon/config.ts";
import { createStartMemory, IO_THREADS_MAX, startIoThread } from "../../daemon/io-thread-start.ts";
import type { PendingDaemon } from "../../daemon/launch.ts";
import { UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { parseMountOptions } from "../../fuse/mount-options.ts";
import {
  backingPolicyOption,
  forceShareOption,
  formatOption,
  numberOption,
  oneOf,
  rateOption,
} from "../options.ts";
import { printMessage } from "../print.ts";
import { forgetSecrets, type SecretOptions, secretOption, secretsOf } from "../secrets.ts";

const THREADS_DEFAULT = 4;

interface MountCommandOptions extends SecretOptions {
  readonly readOnly?: boolean;
  readonly copyOnRead: boolean;
  readonly detectZeroes: DetectZeroes;
  readonly discard: Discard;
  readonly growable?: boolean;
  readonly bitmaps: BitmapPolicy;
  readonly stream?: StreamOption;
  readonly snapshot?: string;
  readonly foreground?: boolean;
  readonly format?: FormatName;
  readonly options?: readonly string[];
  readonly threads: number;
  readonly backingPolicy?: BackingPolicy;
  readonly forceShare?: boolean;
  readonly logFile?: string;
}

/** @param daemon a process that was started already, to lose no time */
export function defineMount(command: Command, daemon: PendingDaemon): void {
  command
    .description(
      "Show disk images as flat raw devices: NAME.raw, NAME.stats.json, NAME.partitions/ and NAME.snapshots/ in MOUNTPOINT, or one image as MOUNTPOINT itself if that is a file. Returns when the devices can be used.",
    )
    .usage("[options] <image...> <mountpoint>")
    .argument("<image...>", "qcow2, QED or raw files, then a directory or a file to mount them on")
    .option("-r, --read-only", "read only: the images may be in use by other readers")
    .option(
      "--snapshot <name>",
      "show the disks as they were at this internal snapshot, read-only; its ID does, too",
    )
    .option("-f, --foreground", "stay in the foreground; Ctrl-C unmounts")
    .addOption(formatOption("--format <name>"))
    .option(
      "-o, --options <list>",
      "ro, rw, allow_other, uid=, gid=, umask=, fsname=, nonempty, max_read=, read_ahead_kb=",
      (value: string, all: readonly string[] = []) => [...all, value],
    )
    .option(
      "--threads <n>",
      "I/O threads",
      numberOption("--threads", 1, IO_THREADS_MAX),
      THREADS_DEFAULT,
    )
    .option(
      "--no-copy-on-read",
      "leave what is read from a backing file there; default: it is stored in the image",
    )
    .addOption(
      new Option(
        "--detect-zeroes <mode>",
        "off, on or unmap: whether zeros that are written become zero clusters",
      )
        .default("on")
        .argParser(oneOf("--detect-zeroes", DETECT_ZEROES)),
    )
    .addOption(
      new Option(
        "--discard <mode>",
        "unmap or ignore: whether space that is not needed goes back to the host",
      )
        .default("unmap")
        .argParser(oneOf("--discard", DISCARD)),
    )
    .addOption(
      new Option(
        "--bitmaps <mode>",
        "track or refuse: persistent dirty bitmaps are kept up, or images that have some are not mounted for writing",
      )
        .default("track")
        .argParser(oneOf("--bitmaps", BITMAP_POLICIES)),
    )
    .option("--growable", "let truncate, and writes past the end, change the size of the disks")
    .option(
      "--stream [rate]",
      "copy in the background what images lack from their backing files, until they do without them; --stream=20M: no more than that a second",
      streamOption,
    )
    .addOption(backingPolicyOption())
    .addOption(forceShareOption())
    .addOption(secretOption())
    .option("--log-file <file>", "append the daemon's messages to this file")
    .addHelpText(
      "after",
      "\nExample:\n  tsimgfs mount vm.qcow2 /mnt/images && cp --sparse=always /mnt/images/vm.raw copy.raw",
    )
    .action((paths: readonly string[], options: MountCommandOptions) =>
      mount(paths, options, daemon),
    );
}

/** Streaming from the start; no limit: as fast as it goes. */
interface StreamOption {
  readonly limit: number | undefined;
}

function streamOption(text: string): StreamOption {
  return { limit: text === "" ? undefined : rateOption("--stream")(text) };
}

/** How the devices are written to; undefined: they are read-only. */
function writePolicy(
  options: MountCommandOptions,
  { readOnly }: { readOnly: boolean | undefined },
): WritePolicy | undefined {
  if (options.readOnly === true && readOnly === false) {
    throw new UsageError("mount", "-r and -o rw contradict each other");
  }
  if (options.snapshot !== undefined && readOnly === false) {
    throw new UsageError("--snapshot", "is only read, and contradicts -o rw");
  }
  if (options.readOnly === true || readOnly === true || options.snapshot !== undefined) {
    if (options.stream === undefined) return undefined;
    throw new UsageError("--stream", "writes to the images, and contradicts -r and --snapshot");
  }
  if (options.forceShare === true) {
    throw new UsageError("--force-share", "is for reading only: what two write to is lost; add -r");
  }
  const { copyOnRead, detectZeroes, discard, growable = false, bitmaps } = options;
  if (detectZeroes === "unmap" && discard === "ignore") {
    throw new UsageError("--detect-zeroes unmap", "contradicts --discard ignore");
  }
  return { copyOnRead, detectZeroes, discard, growable, bitmaps };
}

async function mount(
  paths: readonly string[],
  options: MountCommandOptions,
  daemon: PendingDaemon,
): Promise<void> {
  const images = paths.slice(0, -1);
  const mountpoint = paths.at(-1);
  if (mountpoint === undefined || images.length === 0) {
    throw new UsageError(
      "mount",
      "needs an image and a mount point: tsimgfs mount IMAGE... MOUNTPOINT",
    );
  }
  const mountOptions = parseMountOptions(options.options ?? []);
  const config: DaemonConfig = {
    images,
    mountpoint,
    format: options.format,
    backingPolicy: options.backingPolicy,
    forceShare: options.forceShare ?? false,
    writing: writePolicy(options, mountOptions),
    threads: options.threads,
    streaming: options.stream,
    snapshot: options.snapshot,
    mountOptions,
    logFile: options.logFile,
  };
  const secrets = secretsOf(options);
  if (options.foreground === true) {
    daemon.dismiss();
    const { runDaemon } = await import("../../daemon/run.ts");
    const start = createStartMemory();
    const worker = startIoThread({ thread: 0, start });
    await runDaemon(config, secrets, { worker, start }, (warnings) =>
      warnings.forEach(printMessage),
    );
    return;
  }
  const warnings = await daemon.launch(config, secrets);
  forgetSecrets();
  warnings.forEach(printMessage);
  // The daemon must not keep this process, nor this process wait for it.
  process.exit(0);
}
