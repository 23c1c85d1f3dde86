/** `tsimgfs commit`: copy what an image has above its backing file into that file. */

import { attachDisk } from "../../block/attach-disk.ts";
import { CommitJob } from "../../block/commit-job.ts";
import type { Disk } from "../../block/disk.ts";
import { closeChain, type OpenChain, openChain } from "../../block/open-chain.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { refuseDependentSnapshots } from "../../block/snapshot-dependence.ts";
import type { WritePolicy } from "../../block/write-policy.ts";
import { printable } from "../../errors.ts";
import { ClusterCache } from "../../formats/compression/cluster-cache.ts";
import type { FormatName } from "../../formats/driver.ts";
import type { CacheMode } from "../../storage/cache-mode.ts";
import { DiskWork } from "../disk-work.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { type LongWork, type LongWorkDisplay, runLongWork } from "../long-work.ts";
import { PLAIN_WRITING } from "../offline-disk.ts";
import {
  backingPolicyOption,
  cacheOption,
  formatOption,
  progressOption,
  quietOption,
  rateLimitOption,
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
import { hearStopSignals, type StopSignal, signalStatus } from "../stop-signals.ts";

interface CommitOptions extends SecretOptions {
  readonly format?: FormatName;
  readonly base?: string;
  readonly drop?: boolean;
  readonly progress?: boolean;
  readonly quiet?: boolean;
  readonly rate?: number;
  readonly cache?: CacheMode;
  readonly backingPolicy?: BackingPolicy;
}

/** Zeros become zero clusters, or holes, of the base; it may have to become longer. */
const BASE_POLICY: WritePolicy = { ...PLAIN_WRITING, detectZeroes: "unmap", growable: true };

/** A step of emptying covers this many bytes of the disk at the most. */
const EMPTY_STEP = 1024 * 1024 * 1024;

export function defineCommit(command: DocumentedCommand): void {
  command
    .description(
      "Copy the data of an image into its backing file, then empty the image. If it is stopped, run the same command again for the rest; what the image shows never changes.",
    )
    .argument("<image>")
    .addOption(formatOption("-f, --format <name>"))
    .option("-b, --base <file>", "copy into this image further down the chain; implies -d")
    .option("-d, --drop", "do not empty the image, which will be removed anyway")
    .addOption(progressOption())
    .addOption(quietOption("print nothing on success"))
    .addOption(rateLimitOption())
    .addOption(cacheOption("-t, --cache <mode>", "image"))
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      notes: [
        "Other images on top of the same backing file, and those between, become useless. QED images are not emptied.",
      ],
      examples: [["Commit to the backing file", "tsimgfs commit -p vm.qcow2"]],
      seeAlso: ["rebase", "stream", "qemu-img(1)"],
    })
    .action(commit);
}

async function commit(image: string, options: CommitOptions): Promise<void> {
  const { format, backingPolicy, cache, base: path } = options;
  const isKept = options.drop === true || path !== undefined;
  hearStopSignals();
  const chain = openChain(image, {
    format,
    backingPolicy,
    cache,
    forceShare: false,
    ...secretsOf(options),
    writing: isKept ? undefined : { policy: PLAIN_WRITING, threads: 1 },
    base: { path, writing: { policy: BASE_POLICY, threads: 1 } },
  });
  forgetSecrets();
  try {
    chain.warnings.forEach(printNote);
    const signal = await new CommitRun(image, chain, options).run();
    if (signal !== undefined) process.exitCode = signalStatus(signal);
    else if (options.quiet !== true) print("Image committed.\n");
  } finally {
    closeChain(chain);
  }
}

/** One run: into the base, and then out of the image. */
class CommitRun {
  readonly #image: string;
  readonly #options: CommitOptions;
  /** The image with those between it and the base. */
  readonly #above: Disk;
  readonly #base: Disk;

  /** @throws {TsimgfsError} the image must not be committed */
  constructor(image: string, { layers, writing, base }: OpenChain, options: CommitOptions) {
    if (base === undefined) throw new RangeError("the chain was opened without a base");
    this.#image = image;
    this.#options = options;
    const thread = { slot: 0, requestMaintenance: undefined };
    const resources = { clusterCache: new ClusterCache() };
    const above = { layers: layers.slice(0, base.index), writing };
    this.#above = attachDisk(above, resources, thread);
    refuseDependentSnapshots(this.#above.chain.image);
    const below = { layers: layers.slice(base.index), writing: base.writing };
    this.#base = attachDisk(below, resources, thread);
  }

  /** @returns the signal that stopped it */
  async run(): Promise<StopSignal | undefined> {
    let signal: StopSignal | undefined;
    try {
      const job = new CommitJob(this.#above, this.#base);
      signal = await this.#work(new DiskWork(job, this.#base, this.#options.rate), "copied");
    } finally {
      // What was copied is durable before anything is taken out of the image.
      this.#base.close();
    }
    if (signal !== undefined || !this.#above.isWritable) return signal;
    try {
      return this.#above.canDeallocate
        ? await this.#work(new Emptying(this.#above), "emptied")
        : undefined;
    } finally {
      this.#above.close();
    }
  }

  async #work(work: LongWork, what: string): Promise<StopSignal | undefined> {
    const display: LongWorkDisplay = { progress: this.#options.progress === true };
    const signal = await runLongWork(work, display);
    if (signal === undefined) return undefined;
    const place = `${sizeText(work.done)} of ${sizeText(work.total)}`;
    printMessage(
      printable(`${this.#image}: stopped, ${place} ${what}; the same command does the rest`),
    );
    return signal;
  }
}

class Emptying implements LongWork {
  readonly #disk: Disk;
  readonly total: number;
  done = 0;

  constructor(disk: Disk) {
    this.#disk = disk;
    this.total = disk.virtualSize;
  }

  step(): boolean {
    const end = Math.min(this.total, this.done + EMPTY_STEP);
    while (this.done < end) {
      this.done += this.#disk.deallocate(this.done, this.total - this.done);
    }
    return this.done >= this.total;
  }
}
