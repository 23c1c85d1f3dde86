/** `tsimgfs rebase`: give an image another backing file, without its disk changing, or only the name of it. */

import fs from "node:fs";
import { attachChain } from "../../block/attach-disk.ts";
import { closeChain, type OpenChain, openChain } from "../../block/open-chain.ts";
import { RebaseJob } from "../../block/rebase-job.ts";
import {
  type BackingPolicy,
  missingBackingWarning,
  permittedPath,
  resolveReference,
} from "../../block/referenced-file.ts";
import { refuseDependentSnapshots } from "../../block/snapshot-dependence.ts";
import { printable, UsageError } from "../../errors.ts";
import { ClusterCache } from "../../formats/compression/cluster-cache.ts";
import { type BackingReference, FORMAT_NAMES, type FormatName } from "../../formats/driver.ts";
import {
  determineFormat,
  parseFormatName,
  readLayout,
  repairBeforeWriting,
  setBackingFile,
} from "../../formats/formats.ts";
import type { CacheMode } from "../../storage/cache-mode.ts";
import { fileIdentity } from "../../storage/file-identity.ts";
import { lockForWriting } from "../../storage/image-lock.ts";
import { LocalFile } from "../../storage/local-file.ts";
import { DiskWork } from "../disk-work.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { DocumentedOption } from "../documented-option.ts";
import { runLongWork } from "../long-work.ts";
import { currentFile, type OfflineDisk, openOffline, PLAIN_WRITING } from "../offline-disk.ts";
import {
  backingPolicyOption,
  cacheOption,
  choiceOption,
  formatOption,
  progressOption,
  quietOption,
} from "../options.ts";
import { printMessage, printNote } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
  secretsOf,
} from "../secrets.ts";
import { sizeText } from "../size-text.ts";
import { type StopSignal, signalStatus } from "../stop-signals.ts";

interface RebaseOptions extends SecretOptions {
  readonly format?: FormatName;
  readonly backing?: string;
  readonly backingFormat?: FormatName;
  readonly unsafe?: boolean;
  readonly compress?: boolean;
  readonly progress?: boolean;
  readonly quiet?: boolean;
  readonly cache?: CacheMode;
  readonly sourceCache?: CacheMode;
  readonly forceShare?: boolean;
  readonly backingPolicy?: BackingPolicy;
}

export function defineRebase(command: DocumentedCommand): void {
  command
    .description(
      "Give an image another backing file. Data that differs between the two is copied into the image first, so that its disk stays the same. If it is stopped, run the same command again for the rest.",
    )
    .argument("<image>")
    .addOption(formatOption("-f, --format <name>"))
    .option(
      "-b, --backing <file>",
      'new backing file; relative names start at the image\'s directory; "": none',
    )
    .addOption(
      choiceOption(
        "-F, --backing-format <name>",
        FORMAT_NAMES,
        (names) => `its format: ${names}`,
      ).argParser(parseFormatName),
    )
    .option("-u, --unsafe", "only change the name; the disk changes unless both files are equal")
    .option("-c, --compress", "compress what is copied (qcow2)")
    .addOption(progressOption())
    .addOption(quietOption("no effect: nothing is printed on success anyway"))
    .addOption(cacheOption("-t, --cache <mode>", "image"))
    .addOption(cacheOption("-T, --source-cache <mode>", "source"))
    .addOption(
      new DocumentedOption(
        "-U, --force-share",
        "open the new backing file even if another process may be writing to it",
      ).minor(),
    )
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      examples: [
        ["Another backing file", "tsimgfs rebase -p -b new-base.qcow2 -F qcow2 vm.qcow2"],
        ["The backing file was moved", "tsimgfs rebase -u -b /new/base.raw -F raw vm.qcow2"],
      ],
      seeAlso: ["commit", "stream", "qemu-img(1)"],
    })
    .action(rebase);
}

async function rebase(image: string, options: RebaseOptions): Promise<void> {
  const backing = wantedBacking(image, options);
  if (options.unsafe === true) renameBacking(image, options, backing);
  else await new RebaseRun(image, options, backing).run();
}

/** @throws {UsageError} it is not said, or its format is not */
function wantedBacking(image: string, options: RebaseOptions): BackingReference | undefined {
  const { backing: name, backingFormat: format, unsafe = false } = options;
  if (name === undefined && !unsafe) {
    throw new UsageError(
      image,
      "state the new backing file with -b, or -u to change the name only",
    );
  }
  if (name === undefined || name === "") return undefined;
  if (format === undefined) {
    throw new UsageError(image, `state the format of the backing file ${name} with -F`);
  }
  return { name, format };
}

function refuseRaw(path: string, format: FormatName | undefined): void {
  if (format === "raw") throw new UsageError(path, "raw images have no backing files");
}

function refuseItself(path: string, backing: BackingReference | undefined): void {
  if (backing === undefined) return;
  if (fileIdentity(resolveReference(path, backing.name)) !== fileIdentity(path)) return;
  throw new UsageError(path, "is in its own backing chain");
}

/** Change the name and nothing else: neither backing file is looked at. */
function renameBacking(
  image: string,
  { format: stated, cache }: RebaseOptions,
  backing: BackingReference | undefined,
): void {
  const file = LocalFile.open(image, "read-write", { cache });
  try {
    lockForWriting(file);
    const format = determineFormat(file, stated);
    refuseRaw(image, format);
    refuseItself(image, backing);
    const repaired = repairBeforeWriting(
      readLayout(format, file, { tableCacheMax: 0, keepsL1: false }),
      file,
    );
    if (repaired !== undefined) printNote(printable(`${image}: warning: ${repaired}`));
    const missing = backing && missingBackingWarning(image, backing.name);
    if (missing !== undefined) printNote(missing);
    setBackingFile(format, currentFile(file.share()), backing);
  } finally {
    file.close();
  }
}

/** One run: until the end, or a signal. */
class RebaseRun {
  readonly #options: RebaseOptions;
  readonly #backing: BackingReference | undefined;
  readonly #source: OfflineDisk;
  readonly #below: OpenChain | undefined;
  readonly #work: DiskWork;

  /** @throws {TsimgfsError} the image must not be rebased, or not on that; nothing is left open */
  constructor(image: string, options: RebaseOptions, backing: BackingReference | undefined) {
    this.#options = options;
    this.#backing = backing;
    this.#source = openOffline(image, { ...options, forceShare: false }, { policy: PLAIN_WRITING });
    try {
      this.#refuse();
      this.#below = backing && this.#openBelow(backing);
      const shared = this.#sharedIndex();
      if (!this.#keepsBelow(shared)) refuseDependentSnapshots(this.#source.disk.chain.image);
      forgetSecrets();
      const resources = { clusterCache: new ClusterCache() };
      const { disk } = this.#source;
      const below = this.#below && attachChain(this.#below.layers, resources);
      const job = { compress: options.compress === true, shared };
      this.#work = new DiskWork(new RebaseJob(disk, below, job), disk);
    } catch (error) {
      this.#close();
      throw error;
    }
  }

  async run(): Promise<void> {
    try {
      let signal: StopSignal | undefined;
      try {
        signal = await runLongWork(this.#work, { progress: this.#options.progress === true });
      } finally {
        // Also after a failure: what was copied is kept.
        this.#source.endWriting();
      }
      if (signal === undefined) this.#finish();
      else this.#tellOfStop(signal);
    } finally {
      this.#close();
    }
  }

  #refuse(): void {
    const { disk, path, chain } = this.#source;
    refuseRaw(path, chain.layers[0]?.layout.format);
    if (this.#options.compress === true && !disk.canCompress) {
      throw new UsageError(path, "cannot have compressed clusters: leave -c out");
    }
  }

  #openBelow({ name, format }: BackingReference): OpenChain {
    const { path: imagePath } = this.#source;
    const { backingFormat, backingPolicy, sourceCache, forceShare = false } = this.#options;
    if (format !== backingFormat) throw new RangeError(`a backing file of format ${format}`);
    const path = permittedPath({ imagePath, role: "backing file", name }, "any");
    const chain = openChain(path, {
      format: backingFormat,
      backingPolicy,
      cache: sourceCache,
      forceShare,
      overlay: imagePath,
      ...secretsOf(this.#options),
    });
    chain.warnings.forEach(printNote);
    return chain;
  }

  /** Where the new backing file is in the chain of the image; as many as there are, if it is not. */
  #sharedIndex(): number {
    const { layers } = this.#source.chain;
    const wanted = this.#below?.layers[0];
    if (wanted === undefined) return layers.length;
    const { dev, ino } = fs.fstatSync(wanted.file.fd);
    const index = layers.findIndex(({ file, layout }) => {
      const stats = fs.fstatSync(file.fd);
      // The same file taken for another format shows something else.
      const isSame = stats.dev === dev && stats.ino === ino && stats.isFile();
      return isSame && layout.format === wanted.layout.format;
    });
    return index < 0 ? layers.length : index;
  }

  /** The backing file, or that there is none, stays: at the most, it gets another name. */
  #keepsBelow(shared: number): boolean {
    const hadBacking = this.#source.chain.layers.length > 1;
    return shared === 1 && hadBacking === (this.#below !== undefined);
  }

  /** All is copied and durable, and nobody writes any more. */
  #finish(): void {
    const [top] = this.#source.chain.layers;
    if (top === undefined) throw new RangeError("a chain has at least one image");
    setBackingFile(top.layout.format, currentFile(top.file), this.#backing);
  }

  #tellOfStop(signal: StopSignal): void {
    const { done, total } = this.#work;
    const place = `${sizeText(done)} of ${sizeText(total)}`;
    printMessage(
      printable(`${this.#source.path}: stopped at ${place}; the same command does the rest`),
    );
    process.exitCode = signalStatus(signal);
  }

  #close(): void {
    if (this.#below !== undefined) closeChain(this.#below);
    this.#source.close();
  }
}
