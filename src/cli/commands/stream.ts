/** `tsimgfs stream`: copy what an image lacks from its backing files, which it does without then. */

import { RateMeter } from "../../block/copy-rate.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { refuseDependentSnapshots } from "../../block/snapshot-dependence.ts";
import { StreamJob } from "../../block/stream-job.ts";
import { planStream, type StreamPlan } from "../../block/stream-plan.ts";
import { printable, StorageError, TsimgfsError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import { setBackingFile } from "../../formats/formats.ts";
import { DiskWork } from "../disk-work.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { DocumentedOption } from "../documented-option.ts";
import { runLongWork } from "../long-work.ts";
import { writableDeviceOf } from "../mounted-device.ts";
import { currentFile, type OfflineDisk, openOffline, PLAIN_WRITING } from "../offline-disk.ts";
import {
  backingPolicyOption,
  formatOption,
  type Output,
  outputOption,
  progressOption,
  rateOption,
} from "../options.ts";
import { print, printMessage } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
} from "../secrets.ts";
import { sizeText } from "../size-text.ts";
import { type StopSignal, signalStatus } from "../stop-signals.ts";

interface StreamCommandOptions extends SecretOptions {
  readonly base?: string;
  readonly rate?: number;
  readonly progress?: boolean;
  readonly output: Output;
  readonly format?: FormatName;
  readonly backingPolicy?: BackingPolicy;
}

/** How far the image is, for who watches. */
type State = "running" | "done" | "stopped";

export function defineStream(command: DocumentedCommand): void {
  command
    .description(
      "Copy into an image what it takes from its backing files (or from those above --base), then drop them. It can be stopped at any time and resumes where it was; the image is always valid.",
    )
    .argument("<image>")
    .addOption(
      new DocumentedOption(
        "--base <file>",
        "copy only what is above this image, the new backing file",
      ).inManual(
        "Copy only what is above this image of the chain, which becomes the backing file.",
      ),
    )
    .option("--rate <bytes/s>", "copy no faster than this, such as 20M", rateOption("--rate"))
    .addOption(progressOption())
    .addOption(outputOption())
    .addOption(formatOption("-f, --format <name>"))
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      notes: [
        "A mounted image is streamed by its mount:",
        { lines: "  setfattr -n user.tsimgfs.stream -v start /mnt/images/vm.raw" },
      ],
      examples: [["At most 100 MiB/s", "tsimgfs stream -p --rate 100M vm.qcow2"]],
      seeAlso: ["commit", "rebase", "mount", "setfattr(1)"],
    })
    .action(stream);
}

async function stream(image: string, options: StreamCommandOptions): Promise<void> {
  const source = open(image, options);
  forgetSecrets();
  try {
    const plan = planStream(source.chain.layers, options.base);
    if (plan.bottom === 1) tellOfNothing(image, plan, options.output);
    else await new StreamRun(source, plan, options).run();
  } finally {
    source.close();
  }
}

/** The base is the backing file already. */
function tellOfNothing(image: string, { backing }: StreamPlan, output: Output): void {
  const line = { filename: image, state: "done", "copied-bytes": 0 };
  const text = printable(`${image}: ${backing?.name} is its backing file already`);
  const json = JSON.stringify({ ...line, "backing-filename": backing?.name });
  print(`${output === "json" ? json : text}\n`);
}

function open(image: string, options: StreamCommandOptions): OfflineDisk {
  try {
    return openOffline(image, options, { policy: PLAIN_WRITING });
  } catch (error) {
    const isInUse = error instanceof StorageError && error.code === "EAGAIN";
    const device = isInUse && error.path === image ? writableDeviceOf(image) : undefined;
    if (device === undefined || options.base !== undefined) throw error;
    const reason = `is mounted; setfattr -n user.tsimgfs.stream -v start ${device} streams it there`;
    throw new TsimgfsError("EAGAIN", image, reason, { cause: error });
  }
}

/** One run: until the end, or a signal. */
class StreamRun {
  readonly #source: OfflineDisk;
  readonly #plan: StreamPlan;
  readonly #options: StreamCommandOptions;
  readonly #work: DiskWork;
  readonly #copyMeter = new RateMeter(performance.now(), 0);

  /** @throws {TsimgfsError} the image must not be streamed */
  constructor(source: OfflineDisk, plan: StreamPlan, options: StreamCommandOptions) {
    this.#source = source;
    this.#plan = plan;
    this.#options = options;
    refuseDependentSnapshots(source.disk.chain.image);
    const job = new StreamJob(source.disk, plan.bottom);
    this.#work = new DiskWork(job, source.disk, options.rate);
  }

  async run(): Promise<void> {
    const { progress = false, output } = this.#options;
    let signal: StopSignal | undefined;
    try {
      signal = await runLongWork(this.#work, {
        progress: progress && output === "human",
        tell: () => this.#tell("running"),
      });
    } finally {
      // Also after a failure: what was copied is kept.
      this.#source.endWriting();
    }
    if (signal === undefined) this.#finish();
    else this.#tellOfStop(signal);
  }

  /** A line of JSON, if that is wanted. */
  #tell(state: State): void {
    if (this.#options.output !== "json") return;
    const { done, total, copied } = this.#work;
    const rate = Math.round(this.#copyMeter.rateAt(performance.now(), copied));
    const { backing } = this.#plan;
    const line = {
      filename: this.#source.path,
      state,
      done,
      total,
      "copied-bytes": copied,
      rate,
      ...(state === "done" && backing !== undefined ? { "backing-filename": backing.name } : {}),
    };
    print(`${JSON.stringify(line)}\n`);
  }

  /** All is copied and durable, and nobody writes any more: the image lets go of what is below. */
  #finish(): void {
    const [top] = this.#source.chain.layers;
    if (top === undefined) throw new RangeError("a chain has at least one image");
    const { backing } = this.#plan;
    setBackingFile(top.layout.format, currentFile(top.file), backing);
    this.#tell("done");
    if (this.#options.output !== "human") return;
    const now = backing === undefined ? "no backing file any more" : `backing file ${backing.name}`;
    print(`${printable(`${this.#source.path}: ${sizeText(this.#work.copied)} copied; ${now}`)}\n`);
  }

  #tellOfStop(signal: StopSignal): void {
    this.#tell("stopped");
    const { done, total } = this.#work;
    const place = `${sizeText(done)} of ${sizeText(total)}`;
    printMessage(
      printable(`${this.#source.path}: stopped at ${place}; the same command goes on from there`),
    );
    process.exitCode = signalStatus(signal);
  }
}
