/** `tsimgfs bitmap`: add, remove and change the persistent dirty bitmaps of an image. */

import { dirname } from "node:path";
import { closeChain, openChain } from "../../block/open-chain.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { canonicalPath } from "../../daemon/mountpoint.ts";
import { TsimgfsError, UsageError } from "../../errors.ts";
import { FORMAT_NAMES, type FormatName } from "../../formats/driver.ts";
import { parseFormatName, readBitmap } from "../../formats/formats.ts";
import type { BitmapContents, BitmapEdit } from "../../formats/writer.ts";
import { findMount } from "../../fuse/mount-table.ts";
import { LocalFile } from "../../storage/local-file.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { DocumentedOption } from "../documented-option.ts";
import { isMountedDevice } from "../mounted-snapshots.ts";
import { openOffline, PLAIN_WRITING } from "../offline-disk.ts";
import { backingPolicyOption, choiceOption, formatOption, sizeOption } from "../options.ts";
import { printNote } from "../print.ts";

interface BitmapOptions {
  readonly sourceFile?: string;
  readonly sourceFormat?: FormatName;
  readonly granularity?: number;
  readonly format?: FormatName;
  readonly backingPolicy?: BackingPolicy;
}

/** Granularities that QEMU takes, bytes. */
const GRANULARITY = { min: 512, max: 2 ** 31 } as const;

const ACTIONS = ["add", "remove", "clear", "enable", "disable"] as const;
const ACTION_HELP = {
  add: "create it, enabled unless --disable follows",
  remove: "remove it",
  clear: "clear all marks in it",
  enable: "record writes to the disk in it",
  disable: "stop recording writes in it",
} as const;

/** What is asked for, in the order of the command line. */
type Action =
  | { readonly action: (typeof ACTIONS)[number] }
  | { readonly action: "merge"; readonly source: string };

export function defineBitmap(command: DocumentedCommand): void {
  const actions: Action[] = [];
  command
    .description(
      "Change a persistent dirty bitmap, given by its name, of a qcow2 image. Several changes are made in the order given; if one of them fails, none is made.",
    )
    .argument("<image>")
    .argument("<bitmap>");
  for (const action of ACTIONS) {
    command.option(`--${action}`, ACTION_HELP[action]);
    command.on(`option:${action}`, () => actions.push({ action }));
  }
  command
    .option("--merge <source>", "add the marks of another bitmap; may be repeated")
    .on("option:merge", (source: string) => actions.push({ action: "merge", source }))
    .addOption(
      new DocumentedOption(
        "-b, --source-file <file>",
        "the image that has the sources (default: the same)",
      ).inManual("The image that has the sources of --merge. Default: the same image."),
    )
    .addOption(
      choiceOption("-F, --source-format <name>", FORMAT_NAMES, (names) => `its format: ${names}`)
        .minor()
        .argParser(parseFormatName),
    )
    .option("-g, --granularity <bytes>", "bytes of the disk per bit", granularityOption)
    .addOption(formatOption("-f, --format <name>"))
    .addOption(backingPolicyOption())
    .document({
      notes: ["`tsimgfs info` lists the bitmaps."],
      examples: [["A new bitmap", "tsimgfs bitmap --add -g 64k vm.qcow2 since-monday"]],
      seeAlso: ["info", "mount", "qemu-img(1)"],
    })
    .action((image: string, name: string, options: BitmapOptions) =>
      changeBitmap(image, name, actions, options),
    );
}

function granularityOption(text: string): number {
  const granularity = sizeOption("--granularity")(text);
  const { min, max } = GRANULARITY;
  if (granularity >= min && granularity <= max && Number.isInteger(Math.log2(granularity))) {
    return granularity;
  }
  throw new UsageError("--granularity", `${text} is not a power of 2 in 512..2G`);
}

function changeBitmap(
  image: string,
  name: string,
  actions: readonly Action[],
  options: BitmapOptions,
): void {
  requireSense(image, actions, options);
  if (isMountedDevice(image)) {
    const place = canonicalPath(image);
    const mountPoint = findMount(place) === undefined ? dirname(place) : place;
    const reason = `is a device of the mount on ${mountPoint}, which keeps up the bitmaps of its images itself; unmount it, and name the image`;
    throw new TsimgfsError("EBUSY", image, reason);
  }
  const edits = actions.map((action): BitmapEdit => {
    if (action.action === "add") return { name, action: "add", granularity: options.granularity };
    if (action.action !== "merge") return { name, action: action.action };
    return { name, action: "merge", source: sourceOf(action.source, options) };
  });
  const target = openOffline(image, { ...options, onlyTables: true }, { policy: PLAIN_WRITING });
  try {
    target.disk.editBitmaps(edits);
  } finally {
    target.close();
  }
}

/** @throws {UsageError} options contradict each other */
function requireSense(
  image: string,
  actions: readonly Action[],
  { granularity, sourceFile, sourceFormat }: BitmapOptions,
): void {
  const has = (wanted: Action["action"]): boolean =>
    actions.some(({ action }) => action === wanted);
  const refuse = (reason: string): never => {
    throw new UsageError(image, reason);
  };
  if (actions.length === 0) {
    refuse("state one of --add, --remove, --clear, --enable, --disable and --merge");
  }
  if (granularity !== undefined && !has("add")) refuse("--granularity is for --add");
  if (sourceFile !== undefined && !has("merge")) refuse("--source-file is for --merge");
  if (sourceFormat !== undefined && sourceFile === undefined) {
    refuse("--source-format is for --source-file");
  }
}

/** The source of a merge: by its name, or what it says in another image. */
function sourceOf(name: string, options: BitmapOptions): string | BitmapContents {
  const { sourceFile, sourceFormat, backingPolicy } = options;
  if (sourceFile === undefined) return name;
  const chain = openChain(sourceFile, {
    format: sourceFormat,
    backingPolicy,
    forceShare: false,
    onlyTables: true,
  });
  try {
    chain.warnings.forEach(printNote);
    const [top] = chain.layers;
    if (top === undefined) throw new RangeError("a chain has at least one image");
    return readBitmap(top.layout, new LocalFile(top.file), name);
  } finally {
    closeChain(chain);
  }
}
