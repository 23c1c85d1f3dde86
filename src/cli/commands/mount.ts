/** `tsimgfs mount`: show images as flat raw devices. */

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
import { type DaemonConfig, TRANSPORTS, type TransportName } from "../../daemon/config.ts";
import { createStartMemory, IO_THREADS_MAX, startIoThread } from "../../daemon/io-thread-start.ts";
import { PendingDaemon } from "../../daemon/launch.ts";
import { UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { parseMountOptions } from "../../fuse/mount-options.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { DocumentedOption } from "../documented-option.ts";
import { launchUnlessStopped } from "../launch-mount.ts";
import {
  backingPolicyOption,
  choiceOption,
  collect,
  detectZeroesHelp,
  discardHelp,
  forceShareOption,
  formatOption,
  numberOption,
  rateOption,
} from "../options.ts";
import { printNote } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
  secretsOf,
} from "../secrets.ts";
import { exitStopped, signalStatus } from "../stop-signals.ts";

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
  readonly threads?: number;
  readonly transport: TransportName;
  readonly backingPolicy?: BackingPolicy;
  readonly forceShare?: boolean;
  readonly logFile?: string;
}

/** @param pending a process that was started already, to lose no time */
export function defineMount(command: DocumentedCommand, pending: PendingDaemon | undefined): void {
  command
    .description(
      "Show qcow2, QED and raw images as flat raw devices: NAME.raw, NAME.stats.json, NAME.partitions/, NAME.snapshots/ and metrics in the directory MOUNTPOINT, or one image in place of the file MOUNTPOINT. Returns when the devices are ready.",
    )
    .usage("[options] <image...> <mountpoint>")
    .argument("<image...>")
    .option("-r, --read-only", "never write; others may read the images meanwhile")
    .option("--snapshot <name>", "show the disks as of this internal snapshot; read-only")
    .option("-f, --foreground", "stay in the foreground; Ctrl-C unmounts (status 0)")
    .addOption(formatOption("--format <name>").minor())
    .addOption(
      new DocumentedOption(
        "-o, --options <list>",
        "ro, rw, allow_other, uid=, gid=, umask=, fsname=, nonempty, max_read=, read_ahead_kb=",
      )
        .argParser(collect)
        .inManual(
          "Comma-separated options, as for mount(8). ro, rw: open the images read-only, or for writing. allow_other: let other users use the mount (an ordinary user needs user_allow_other in /etc/fuse.conf). uid=, gid=, umask=: owner and permissions of the files. fsname=: source in the mount table. nonempty: the directory need not be empty. max_read=: largest read request, in bytes. read_ahead_kb=: read-ahead in KiB (root only).",
        ),
    )
    .addOption(
      new DocumentedOption("--threads <n>", `I/O threads (default: ${THREADS_DEFAULT})`)
        .minor()
        .argParser(numberOption("--threads", 1, IO_THREADS_MAX)),
    )
    .addOption(
      choiceOption("--transport <name>", TRANSPORTS, (names) => names)
        .minor()
        .default("dev-fuse")
        .inManual(
          "How requests arrive from the kernel. dev-fuse: read from /dev/fuse, by several threads. fuse-native: through the npm package of that name, an optional dependency that needs libfuse 2; with one thread, and without fallocate, SEEK_HOLE, page cache and shared mmap.",
        ),
    )
    .option("--no-copy-on-read", "do not store what is read from backing files")
    .addOption(
      choiceOption("--detect-zeroes <mode>", DETECT_ZEROES, detectZeroesHelp).minor().default("on"),
    )
    .addOption(choiceOption("--discard <mode>", DISCARD, discardHelp).minor().default("unmap"))
    .addOption(
      choiceOption(
        "--bitmaps <mode>",
        BITMAP_POLICIES,
        () => "track persistent dirty bitmaps, or refuse to write",
      )
        .minor()
        .default("track")
        .inManual(
          "track: keep persistent dirty bitmaps up to date. refuse: do not mount images that have some for writing.",
        ),
    )
    .addOption(
      new DocumentedOption(
        "--growable",
        "truncate and writes past the end change the size of a disk",
      ).minor(),
    )
    .addOption(
      new DocumentedOption(
        "--stream [rate]",
        "background copy of backing files, at most RATE bytes/s",
      )
        .argParser(streamOption)
        .inManual(
          "Copy into the images, in the background, what they take from their backing files, and then drop those. --stream=20M: at most that many bytes per second.",
        ),
    )
    .addOption(backingPolicyOption())
    .addOption(forceShareOption("with -r: mount even if another process may be writing"))
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .addOption(
      new DocumentedOption(
        "--log-file <file>",
        "append the daemon's messages to this file",
      ).minor(),
    )
    .document({
      details: [
        "Any tool can read and write a device: dd, cp, cmp, losetup, mkfs, fsck, debugfs. Its size is fixed, unless --growable is given. When a write returns, it is in the image; when fsync returns, it is on the disk.",
        "The extended attributes user.tsimgfs.* of a device describe it, and some take commands: stream, resize, snapshot.create, snapshot.apply, snapshot.delete.",
      ],
      examples: [
        ["Mount an image", "tsimgfs mount vm.qcow2 /mnt/images"],
        ["Mount several, read-only", "tsimgfs mount -r web.qcow2 db.qed /mnt/images"],
      ],
      seeAlso: ["umount", "list", "attach", "stream", "fusermount3(1)", "fuse(4)"],
    })
    .action((paths: readonly string[], options: MountCommandOptions) =>
      mount(paths, options, pending ?? new PendingDaemon()),
    );
}

/** Streaming from the start; no limit: as fast as it goes. */
interface StreamOption {
  readonly limit: number | undefined;
}

function streamOption(text: string): StreamOption {
  return { limit: text === "" ? undefined : rateOption("--stream")(text) };
}

/** How many I/O threads there are; 0: the transport has none. */
function threadCount({ transport, threads }: MountCommandOptions): number {
  if (transport === "dev-fuse") return threads ?? THREADS_DEFAULT;
  if (threads === undefined) return 0;
  throw new UsageError("--threads", `contradicts --transport ${transport}, which has one thread`);
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
    transport: options.transport,
    threads: threadCount(options),
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
    const early = await runDaemon(config, secrets, { worker, start }, (warnings) =>
      warnings.forEach(printNote),
    );
    if (early !== undefined) process.exitCode = signalStatus(early);
    return;
  }
  const warnings = await launchUnlessStopped(daemon, config, secrets);
  if (warnings === undefined) exitStopped();
  forgetSecrets();
  warnings.forEach(printNote);
  // The daemon must not keep this process, nor this process wait for it.
  process.exit(0);
}
