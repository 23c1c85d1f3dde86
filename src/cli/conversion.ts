/** Converting: disks, one behind the other, are copied into an image that is made for them, or is there. */

import {
  bitmapCopies,
  type CopiedBitmap,
  readCopiedBitmaps,
  requireRoomForBitmaps,
} from "../block/convert/copied-bitmaps.ts";
import { createCopyCursor } from "../block/convert/copy-cursor.ts";
import type { SharedCopy } from "../block/convert/disk-copier.ts";
import { type CreateRequest, type PlannedImage, planImage } from "../block/create-image.ts";
import type { BackingPolicy } from "../block/referenced-file.ts";
import { printable, UsageError } from "../errors.ts";
import { FORMAT_NAMES, type FormatName } from "../formats/driver.ts";
import type { CacheMode } from "../storage/cache-mode.ts";
import { ConvertTarget, refuseSources } from "./convert-target.ts";
import { CopyWork, copyThreads } from "./copy-work.ts";
import { type CreateFormat, CreateOptions } from "./create-options.ts";
import { requestedFormat } from "./create-request.ts";
import type { StoppedCreation } from "./creation.ts";
import { runLongWork } from "./long-work.ts";
import type { OfflineDisk } from "./offline-disk.ts";
import { printMessage, printNote } from "./print.ts";
import { forgetSecrets, type SecretOptions, secretsOf } from "./secrets.ts";
import { sizeText } from "./size-text.ts";
import { snapshotNumber } from "./snapshot-param.ts";
import { hearStopSignals, type StopSignal, signalStatus } from "./stop-signals.ts";

/** As qemu-img has it: zeros of that many bytes are left out. */
const SPARSE_DEFAULT = 4096;

/** The options of the command line, as commander names them. */
export interface ConvertOptions extends SecretOptions {
  readonly format?: FormatName;
  readonly outputFormat: CreateFormat;
  readonly options?: readonly string[];
  readonly backing?: string;
  readonly backingFormat?: FormatName;
  readonly compress?: boolean;
  /** Undefined: nothing is said, which is SPARSE_DEFAULT. */
  readonly sparse?: number;
  /** False: `-n`. */
  readonly create: boolean;
  readonly targetIsZero?: boolean;
  readonly bitmaps?: boolean;
  readonly skipBrokenBitmaps?: boolean;
  /** `-C`. */
  readonly copyRange?: boolean;
  readonly snapshot?: string;
  readonly salvage?: boolean;
  readonly parallel: number;
  readonly rate?: number;
  readonly progress?: boolean;
  readonly quiet?: boolean;
  readonly cache?: CacheMode;
  readonly sourceCache?: CacheMode;
  readonly forceShare?: boolean;
  readonly backingPolicy?: BackingPolicy;
}

/** One run of `tsimgfs convert`: from images that are open to one that it makes, or opens. */
export class Conversion {
  readonly #sources: readonly OfflineDisk[];
  readonly #targetPath: string;
  readonly #options: ConvertOptions;
  readonly #threads: number;
  readonly #snapshot: number | undefined;
  /** Undefined: none come along. */
  readonly #bitmaps: readonly CopiedBitmap[] | undefined;
  /** Bytes that are copied. */
  readonly #size: number;

  constructor(sources: readonly OfflineDisk[], targetPath: string, options: ConvertOptions) {
    this.#sources = sources;
    this.#targetPath = targetPath;
    this.#options = options;
    const { parallel, rate = Number.POSITIVE_INFINITY } = options;
    this.#threads = Number.isFinite(rate) ? 1 : copyThreads(parallel);
    const { snapshot } = options;
    const [first] = sources;
    const image = first?.disk.chain.image;
    this.#snapshot =
      snapshot === undefined || image === undefined ? undefined : snapshotNumber(image, snapshot);
    this.#bitmaps =
      options.bitmaps === true && first !== undefined ? this.#readBitmaps(first) : undefined;
    this.#size = sources.reduce((sum, { disk }) => sum + this.#sizeOf(disk), 0);
  }

  #sizeOf(disk: OfflineDisk["disk"]): number {
    return this.#snapshot === undefined
      ? disk.virtualSize
      : disk.openSnapshot(this.#snapshot).virtualSize;
  }

  #readBitmaps({ chain }: OfflineDisk): readonly CopiedBitmap[] {
    const { skipBrokenBitmaps = false } = this.#options;
    const inconsistent = skipBrokenBitmaps ? "skip" : "refuse";
    return readCopiedBitmaps(chain, inconsistent, (line) => {
      printNote(printable(line));
    });
  }

  async run(): Promise<void> {
    hearStopSignals();
    const target = await this.#open();
    forgetSecrets();
    if (!(target instanceof ConvertTarget)) {
      this.#tellOfStop(target);
      return;
    }
    let signal: StopSignal | undefined;
    try {
      this.#requireRoom(target);
      signal = await this.#copy(target);
      target.close();
    } catch (error) {
      target.close();
      throw target.discardAfter(error);
    }
    if (signal !== undefined) this.#tellOfStop({ signal, remainder: target.giveUp() });
  }

  async #open(): Promise<ConvertTarget | StoppedCreation> {
    const { outputFormat, backingPolicy, create, cache } = this.#options;
    const secrets = secretsOf(this.#options);
    const threads = this.#threads;
    const options = { format: outputFormat, backingPolicy, ...secrets, threads, cache };
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
    plan.warnings.forEach(printNote);
    return await ConvertTarget.create(plan, options);
  }

  #plan(): PlannedImage {
    const { outputFormat, options = [], compress } = this.#options;
    const path = this.#targetPath;
    const list = new CreateOptions(outputFormat, options);
    const size = list.size("size") ?? this.#size;
    if (size < this.#size) {
      throw new UsageError(path, `a size of ${size} is less than the ${this.#size} of the source`);
    }
    const format = requestedFormat(path, outputFormat, list, secretsOf(this.#options).secrets);
    this.#requireBitmapFormat(format, size);
    if (compress === true && format.name === "qcow2") {
      const { dataFile, preallocation, encryption } = format.options;
      if (encryption !== undefined) throw new UsageError("-c", "cannot be with encryption");
      if (dataFile !== undefined) throw new UsageError("-c", "cannot be with a data file");
      if (preallocation !== "off") throw new UsageError("-c", "cannot be with preallocation");
    }
    return planImage({ path, size, backing: this.#backing(list), format });
  }

  /** What is there is lost soon: what would be refused later on is refused now. */
  #requireBitmapFormat(format: CreateRequest["format"], size: number): void {
    if (this.#bitmaps === undefined) return;
    if (format.name !== "qcow2" || format.options.version < 3) {
      throw new UsageError(this.#targetPath, "only qcow2 of compat 1.1 has bitmaps (--bitmaps)");
    }
    for (const { name, contents } of this.#bitmaps) {
      if (contents.virtualSize === size) continue;
      const reason = `is to have ${size} bytes, the disk of bitmap "${name}" has ${contents.virtualSize}`;
      throw new UsageError(this.#targetPath, reason);
    }
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

  #requireRoom({ virtualSize, path, chain }: ConvertTarget): void {
    if (virtualSize < this.#size) {
      throw new UsageError(path, `has ${virtualSize} bytes, and is smaller than the source`);
    }
    if (this.#bitmaps !== undefined) requireRoomForBitmaps(chain, virtualSize, this.#bitmaps);
  }

  #copyOf(target: ConvertTarget): SharedCopy {
    const { compress = false, salvage = false, targetIsZero = false } = this.#options;
    const { sparse = SPARSE_DEFAULT, copyRange = false } = this.#options;
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
        offload: copyRange,
      },
    };
  }

  async #copy(target: ConvertTarget): Promise<StopSignal | undefined> {
    const { rate, quiet = false, progress = false } = this.#options;
    const work = new CopyWork(this.#copyOf(target), {
      threads: this.#threads,
      rate,
      quiet,
      bitmapEdits: this.#bitmaps && bitmapCopies(this.#bitmaps),
    });
    return await work.run(() => runLongWork(work, { progress: progress && !quiet }));
  }

  #tellOfStop({ signal, remainder }: StoppedCreation): void {
    const size = sizeText(this.#size);
    printMessage(printable(`${this.#targetPath}: stopped before the end of ${size}; ${remainder}`));
    process.exitCode = signalStatus(signal);
  }
}
