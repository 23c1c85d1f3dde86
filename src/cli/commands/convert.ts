/** `tsimgfs convert`: copy disks into an image, of any format, with the options of qemu-img convert. */

import { Option } from "commander";
import { createCopyCursor } from "../../block/convert/copy-cursor.ts";
import type { SharedCopy } from "../../block/convert/disk-copier.ts";
import { type CreateRequest, type PlannedImage, planImage } from "../../block/create-image.ts";
import { findSnapshot } from "../../block/find-snapshot.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { printable, UsageError } from "../../errors.ts";
import { FORMAT_NAMES, type FormatName } from "../../formats/driver.ts";
import { ConvertTarget, refuseSources } from "../convert-target.ts";
import { CopyWork, copyThreads } from "../copy-work.ts";
import {
  CREATE_FORMATS,
  type CreateFormat,
  CreateOptions,
  optionsHelp,
} from "../create-options.ts";
import { requestedFormat } from "../create-request.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { runLongWork } from "../long-work.ts";
import { type OfflineDisk, openOffline } from "../offline-disk.ts";
import { asksForHelp } from "../option-list.ts";
import {
  backingPolicyOption,
  cacheOption,
  choiceOption,
  collect,
  forceShareOption,
  formatOption,
  numberOption,
  progressOption,
  rateOption,
  sizeOption,
} from "../options.ts";
import { print, printMessage, printNote } from "../print.ts";
import { forgetSecrets, type SecretOptions, secretOption, secretsOf } from "../secrets.ts";
import { sizeText } from "../size-text.ts";
import { hearStopSignals, type StopSignal, signalStatus } from "../stop-signals.ts";

interface ConvertOptions extends SecretOptions {
  readonly format?: FormatName;
  readonly outputFormat: CreateFormat;
  readonly options?: readonly string[];
  readonly backing?: string;
  readonly backingFormat?: FormatName;
  readonly compress?: boolean;
  readonly sparse: number;
  /** False: `-n`. */
  readonly create: boolean;
  readonly targetIsZero?: boolean;
  readonly snapshot?: string;
  readonly salvage?: boolean;
  readonly parallel: number;
  readonly rate?: number;
  readonly progress?: boolean;
  readonly quiet?: boolean;
  readonly forceShare?: boolean;
  readonly backingPolicy?: BackingPolicy;
}

/** qemu-img's limits, bytes and requests. */
const SPARSE_MAX = 16 * 1024 * 1024;
const SPARSE_DEFAULT = 4096;
const SECTOR_SIZE = 512;
const PARALLEL_MAX = 16;
const PARALLEL_DEFAULT = 8;

export function defineConvert(command: DocumentedCommand): void {
  command
    .description(
      "Copy a disk (or several, one behind the other) into an image, as qemu-img convert does.",
    )
    .argument("<files...>", "the images to copy from, and the one to make")
    .usage("[options] <image>... <target>")
    .addOption(formatOption("-f, --format <name>"))
    .addOption(
      choiceOption(
        "-O, --output-format <name>",
        CREATE_FORMATS,
        (names) => `of the target: ${names}`,
      ).default("raw"),
    )
    .option("-o, --options <list>", "NAME=VALUE,...: of the target; -o help lists them", collect)
    .option("-B, --backing <file>", "backing file of the target, which has what the image's has")
    .addOption(
      choiceOption(
        "-F, --backing-format <name>",
        FORMAT_NAMES,
        (names) => `what the backing file is: ${names}`,
      ),
    )
    .option("-c, --compress", "compress the target's clusters (qcow2)")
    .addOption(
      new Option("-S, --sparse <size>", "zeros of that many bytes are left out; 0: none are")
        .default(SPARSE_DEFAULT, "4k")
        .argParser(sparseSize),
    )
    .option("-n, --no-create", "the target is there: write into it")
    .option("--target-is-zero", "with -n: the target reads as zeros, which are left out then")
    .option("-l, --snapshot <name>", "copy an internal snapshot, by ID or name")
    .option("--salvage", "what cannot be read becomes zeros")
    .addOption(
      new Option("-m, --parallel <count>", "at most so many threads, 1..16")
        .default(PARALLEL_DEFAULT)
        .argParser(numberOption("-m", 1, PARALLEL_MAX)),
    )
    .option("-W, --out-of-order", "taken as qemu-img takes it; threads write in any order")
    .option("-r, --rate <bytes/s>", "copy no faster than this, such as 20M", rateOption("-r"))
    .addOption(progressOption())
    .option("-q, --quiet", "print nothing but errors")
    .addOption(cacheOption("-t, --cache <mode>", "target"))
    .addOption(cacheOption("-T, --source-cache <mode>", "source"))
    .addOption(forceShareOption())
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .document({
      details: [
        "If it fails or is stopped, a target that is new is removed. One that was there before stays, and is not complete.",
        ...CREATE_FORMATS.map((format) => ({ lines: optionsHelp(format).trimEnd() })),
      ],
      examples: [
        ["Compressed", "tsimgfs convert -p -c -O qcow2 vm.raw vm.qcow2"],
        ["Out of a snapshot", "tsimgfs convert -l before-upgrade -O raw vm.qcow2 old.raw"],
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
    for (const path of paths) sources.push(openOffline(path, options));
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
  if (paths.length < 2) return;
  if (backing !== undefined) throw new UsageError("-B", "makes no sense with several images");
  if (snapshot !== undefined) throw new UsageError("-l", "makes no sense with several images");
}

class Conversion {
  readonly #sources: readonly OfflineDisk[];
  readonly #targetPath: string;
  readonly #options: ConvertOptions;
  readonly #threads: number;
  readonly #snapshot: number | undefined;
  /** Bytes that are copied. */
  readonly #size: number;

  constructor(sources: readonly OfflineDisk[], targetPath: string, options: ConvertOptions) {
    this.#sources = sources;
    this.#targetPath = targetPath;
    this.#options = options;
    this.#threads = options.rate === undefined ? copyThreads(options.parallel) : 1;
    const { snapshot } = options;
    const image = sources[0]?.disk.chain.image;
    this.#snapshot =
      snapshot === undefined || image === undefined ? undefined : findSnapshot(image, snapshot);
    this.#size = sources.reduce((sum, { disk }) => sum + this.#sizeOf(disk), 0);
  }

  #sizeOf(disk: OfflineDisk["disk"]): number {
    return this.#snapshot === undefined
      ? disk.virtualSize
      : disk.openSnapshot(this.#snapshot).virtualSize;
  }

  async run(): Promise<void> {
    hearStopSignals();
    const target = this.#open();
    forgetSecrets();
    let signal: StopSignal | undefined;
    try {
      this.#requireRoom(target);
      signal = await this.#copy(target);
    } catch (error) {
      target.close();
      target.discard();
      throw error;
    }
    target.close();
    if (signal !== undefined) this.#tellOfStop(target, signal);
  }

  #open(): ConvertTarget {
    const { outputFormat, backingPolicy, create } = this.#options;
    const secrets = secretsOf(this.#options);
    const options = { format: outputFormat, backingPolicy, secrets, threads: this.#threads };
    const chains = this.#sources.map(({ chain }) => chain);
    if (!create) {
      refuseSources([this.#targetPath], chains);
      const target = ConvertTarget.open(this.#targetPath, options);
      target.chain.warnings.forEach(printNote);
      return target;
    }
    const plan = this.#plan();
    const { path, dataFilePath } = plan;
    refuseSources(dataFilePath === undefined ? [path] : [path, dataFilePath], chains);
    if (this.#options.quiet !== true) plan.warnings.forEach(printNote);
    return ConvertTarget.create(plan, options);
  }

  #plan(): PlannedImage {
    const { outputFormat, options = [], compress } = this.#options;
    const path = this.#targetPath;
    const list = new CreateOptions(outputFormat, options);
    const size = list.size("size") ?? this.#size;
    if (size < this.#size) {
      throw new UsageError(path, `a size of ${size} is less than the ${this.#size} of the source`);
    }
    const format = requestedFormat(path, outputFormat, list, secretsOf(this.#options));
    if (compress === true && format.name === "qcow2") {
      const { dataFile, preallocation, encryption } = format.options;
      if (encryption !== undefined) throw new UsageError("-c", "cannot be with encryption");
      if (dataFile !== undefined) throw new UsageError("-c", "cannot be with a data file");
      if (preallocation !== "off") throw new UsageError("-c", "cannot be with preallocation");
    }
    return planImage({ path, size, backing: this.#backing(list), format });
  }

  #backing(list: CreateOptions): CreateRequest["backing"] {
    const { backing, backingFormat, backingPolicy } = this.#options;
    const name = backing ?? list.text("backing_file");
    const format = backingFormat ?? list.word("backing_fmt", FORMAT_NAMES);
    if (name === undefined) {
      if (format === undefined) return undefined;
      throw new UsageError(this.#targetPath, "the format of a backing file is stated, but no file");
    }
    if (this.#sources.length > 1) throw new UsageError("-B", "makes no sense with several images");
    if (format === undefined) {
      const reason = `the format of the backing file ${name} must be stated (-F)`;
      throw new UsageError(this.#targetPath, reason);
    }
    return { name, format, open: true, policy: backingPolicy };
  }

  #requireRoom({ virtualSize, path }: ConvertTarget): void {
    if (virtualSize >= this.#size) return;
    throw new UsageError(path, `has ${virtualSize} bytes, and is smaller than the source`);
  }

  #copyOf(target: ConvertTarget): SharedCopy {
    const { sparse, compress = false, salvage = false, targetIsZero = false } = this.#options;
    const hasBacking = target.isNew && target.chain.layers.length > 1;
    return {
      sources: this.#sources.map(({ chain }) => ({
        layers: chain.layers,
        snapshot: this.#snapshot,
      })),
      skip: 0,
      size: this.#size,
      target: { layers: target.chain.layers, writing: target.chain.writing },
      cursor: createCopyCursor(),
      manner: {
        sparseSize: sparse,
        compressed: compress,
        targetIsZero: targetIsZero || target.readsAsZeros,
        topOnly: hasBacking,
        salvage,
      },
    };
  }

  async #copy(target: ConvertTarget): Promise<StopSignal | undefined> {
    const { rate, quiet = false, progress = false } = this.#options;
    const work = new CopyWork(this.#copyOf(target), { threads: this.#threads, rate, quiet });
    return await work.run(() => runLongWork(work, { progress: progress && !quiet }));
  }

  #tellOfStop(target: ConvertTarget, signal: StopSignal): void {
    const isGone = target.discard();
    const what = isGone ? "it was removed" : "it is not complete";
    printMessage(
      printable(`${target.path}: stopped before the end of ${sizeText(this.#size)}; ${what}`),
    );
    process.exitCode = signalStatus(signal);
  }
}
