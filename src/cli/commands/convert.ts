/** `tsimgfs convert`: copy disks into an image, of any format, with the options of qemu-img convert. */

import { UsageError } from "../../errors.ts";
import { Conversion, type ConvertOptions } from "../conversion.ts";
import { CREATE_FORMATS, optionsHelp } from "../create-options.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { DocumentedOption } from "../documented-option.ts";
import { type OfflineDisk, openOffline } from "../offline-disk.ts";
import { asksForHelp } from "../option-list.ts";
import {
  backingPolicyOption,
  cacheOption,
  createOptionsOption,
  forceShareOption,
  formatOption,
  namedFormatOption,
  numberOption,
  outputFormatOption,
  progressOption,
  quietOption,
  rateLimitOption,
  sizeOption,
  snapshotOption,
} from "../options.ts";
import { print } from "../print.ts";
import { backingSecretOption, secretOption } from "../secrets.ts";

/** qemu-img's limits, bytes and requests. */
const SPARSE_MAX = 16 * 1024 * 1024;
const SECTOR_SIZE = 512;
const PARALLEL_MAX = 16;
const PARALLEL_DEFAULT = 8;

export function defineConvert(command: DocumentedCommand): void {
  command
    .description("Copy a disk into an image of any format, as qemu-img convert does.")
    .argument("[files...]")
    .usage("[options] <image>... <target>")
    .addOption(formatOption("-f, --format <name>"))
    .addOption(outputFormatOption())
    .addOption(createOptionsOption())
    .addOption(
      new DocumentedOption("-B, --backing <file>", "backing file of the target").inManual(
        "Backing file of the target. It must have the content of the image's backing file, which is not copied.",
      ),
    )
    .addOption(namedFormatOption("-F, --backing-format <name>", "format of the backing file"))
    .option("-c, --compress", "compress the target's clusters (qcow2)")
    .addOption(
      new DocumentedOption(
        "-S, --sparse <size>",
        "leave out runs of zeros of this length; 0: none (default: 4k)",
      )
        .minor()
        .argParser(sparseSize),
    )
    .addOption(new DocumentedOption("-n, --no-create", "write into a target that exists").minor())
    .addOption(
      new DocumentedOption(
        "--target-is-zero",
        "with -n: the target is all zeros, so leave out zeros",
      ).minor(),
    )
    .addOption(snapshotOption("copy"))
    .addOption(
      new DocumentedOption("--bitmaps", "copy persistent bitmaps too (qcow2 to qcow2)").minor(),
    )
    .addOption(
      new DocumentedOption(
        "--skip-broken-bitmaps",
        "with --bitmaps: leave out inconsistent bitmaps",
      ).minor(),
    )
    .addOption(
      new DocumentedOption(
        "-C, --copy-range",
        "let the host copy the data, or share its blocks",
      ).minor(),
    )
    .addOption(new DocumentedOption("--salvage", "write zeros for what cannot be read").minor())
    .addOption(
      new DocumentedOption("-m, --parallel <count>", "number of threads at most, 1..16")
        .minor()
        .default(PARALLEL_DEFAULT)
        .argParser(numberOption("-m", 1, PARALLEL_MAX)),
    )
    .addOption(
      new DocumentedOption(
        "-W, --out-of-order",
        "no effect: threads write in any order anyway",
      ).minor(),
    )
    .addOption(rateLimitOption())
    .addOption(progressOption())
    .addOption(quietOption())
    .addOption(cacheOption("-t, --cache <mode>", "target"))
    .addOption(cacheOption("-T, --source-cache <mode>", "source"))
    .addOption(forceShareOption())
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      details: [
        "Several images become one disk: they are concatenated.",
        "With -C, the host copies data from file to file (copy_file_range; some file systems share the blocks). tsimgfs does not read it, and so finds no zeros in it. What the host cannot copy is read and written.",
        "Unlike with qemu-img, the copy is durable at the end (except with -t unsafe), progress is only shown on a terminal, and there are no --image-opts and --object.",
        "If it fails or is stopped, a new target is removed. A target that existed before stays, and is incomplete.",
        ...CREATE_FORMATS.map((format) => ({ lines: optionsHelp(format).trimEnd() })),
      ],
      examples: [
        ["Compress an image", "tsimgfs convert -p -c -O qcow2 vm.raw vm.qcow2"],
        ["Copy a snapshot", "tsimgfs convert -l before-upgrade -O raw vm.qcow2 old.raw"],
      ],
      seeAlso: ["create", "measure", "dd", "compare", "qemu-img(1)"],
    })
    .action(convert);
}

function sparseSize(text: string): number {
  const size = sizeOption("-S")(text);
  if (size % SECTOR_SIZE === 0 && size <= SPARSE_MAX) return size;
  const reason = `${text} is not a multiple of ${SECTOR_SIZE} up to 16M (0: nothing is left out)`;
  throw new UsageError("-S", reason);
}

async function convert(files: readonly string[], options: ConvertOptions): Promise<void> {
  const lists = options.options ?? [];
  if (asksForHelp(lists)) {
    print(optionsHelp(options.outputFormat));
    return;
  }
  const paths = files.slice(0, -1);
  const target = files.at(-1);
  if (target === undefined || paths.length === 0) {
    throw new UsageError("convert", "needs the name of an image, and that of the target");
  }
  refuseContradictions(paths, options);
  const sources: OfflineDisk[] = [];
  try {
    const reading = { ...options, cache: options.sourceCache };
    for (const path of paths) sources.push(openOffline(path, reading));
    await new Conversion(sources, target, options).run();
  } finally {
    for (const source of sources) source.close();
  }
}

/** What qemu-img refuses before it opens anything. */
function refuseContradictions(paths: readonly string[], options: ConvertOptions): void {
  const { create, targetIsZero, backing, snapshot, compress, outputFormat } = options;
  if (targetIsZero === true && create) throw new UsageError("--target-is-zero", "is for -n only");
  if (targetIsZero === true && backing !== undefined) {
    throw new UsageError("--target-is-zero", "cannot be: the target has a backing file (-B)");
  }
  if (!create && options.options !== undefined) {
    throw new UsageError("-o", "is about making the target, which -n rules out");
  }
  if (compress === true && outputFormat !== "qcow2") {
    throw new UsageError("-c", `${outputFormat} images cannot have compressed clusters`);
  }
  refuseOffload(options);
  if (options.skipBrokenBitmaps === true && options.bitmaps !== true) {
    throw new UsageError("--skip-broken-bitmaps", "is for --bitmaps only");
  }
  if (paths.length < 2) return;
  if (options.bitmaps === true) {
    throw new UsageError("--bitmaps", "makes no sense with several images");
  }
  if (backing !== undefined) throw new UsageError("-B", "makes no sense with several images");
  if (snapshot !== undefined) throw new UsageError("-l", "makes no sense with several images");
}

function refuseOffload({ copyRange, compress, sparse, salvage }: ConvertOptions): void {
  if (copyRange !== true) return;
  if (salvage === true) throw new UsageError("-C", "cannot be with --salvage: somebody must read");
  if (compress === true) throw new UsageError("-C", "cannot be with -c: somebody must compress");
  if (sparse !== undefined) throw new UsageError("-C", "cannot be with -S: somebody must read");
}
