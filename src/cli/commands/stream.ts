/** `tsimgfs stream`: copy what an image lacks from its backing files, which it does without then. */

import fs from "node:fs";
import { constants } from "node:os";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import { attachDisk } from "../../block/attach-disk.ts";
import { RateLimit, RateMeter } from "../../block/copy-rate.ts";
import type { Disk } from "../../block/disk.ts";
import { closeChain, type OpenChain, openChain } from "../../block/open-chain.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { StreamJob } from "../../block/stream-job.ts";
import { planStream, refuseSnapshots, type StreamPlan } from "../../block/stream-plan.ts";
import { listMounts } from "../../daemon/mounts.ts";
import { printable, StorageError, TsimgfsError } from "../../errors.ts";
import { ClusterCache } from "../../formats/compression/cluster-cache.ts";
import type { FormatName } from "../../formats/driver.ts";
import { setBackingFile } from "../../formats/formats.ts";
import { LocalFile } from "../../storage/local-file.ts";
import {
  backingPolicyOption,
  formatOption,
  type Output,
  outputOption,
  rateOption,
} from "../options.ts";
import { print, printMessage } from "../print.ts";
import { ProgressBar } from "../progress-bar.ts";
import { sizeText } from "../size-text.ts";

interface StreamCommandOptions {
  readonly base?: string;
  readonly rate?: number;
  readonly progress?: boolean;
  readonly output: Output;
  readonly format?: FormatName;
  readonly backingPolicy?: BackingPolicy;
}

/** What stops it between two steps. */
const STOP_SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"] as const;
type StopSignal = (typeof STOP_SIGNALS)[number];
/** Exit statuses of what a signal ended, as shells count. */
const SIGNAL_STATUS = 128;

/** Lines of JSON come at most so often, ms. */
const JSON_INTERVAL_MS = 1000;
/** What was copied becomes a part of the image at least so often, ms: the rest is lost if we are killed. */
const FLUSH_INTERVAL_MS = 5000;
/** Waits are cut into pieces of this many ms: signals end them. */
const SLEEP_MAX_MS = 100;

/** How far the image is, for who watches. */
type State = "running" | "done" | "stopped";

export function defineStream(command: Command): void {
  command
    .description(
      "Copy what an image lacks from its backing files, until it does without them (or all above --base). It can be stopped at any time, and goes on where it was; the image is valid at every moment.",
    )
    .argument("<image>")
    .option("--base <file>", "copy only what is above this one, which becomes the backing file")
    .option("--rate <bytes/s>", "copy no faster than this, such as 20M", rateOption("--rate"))
    .option("-p, --progress", "show a progress bar on a terminal")
    .addOption(outputOption())
    .addOption(formatOption("-f, --format <name>"))
    .addOption(backingPolicyOption())
    .addHelpText(
      "after",
      "\nAn image that is mounted is streamed by its mount:\n" +
        "  setfattr -n user.tsimgfs.stream -v start /mnt/images/vm.raw\n" +
        "\nExample:\n  tsimgfs stream -p --rate 100M vm.qcow2",
    )
    .action(stream);
}

async function stream(image: string, options: StreamCommandOptions): Promise<void> {
  const chain = open(image, options);
  try {
    const plan = planStream(chain.layers, options.base);
    if (plan.bottom === 1) {
      tellOfNothing(image, plan, options.output);
      return;
    }
    chain.warnings.forEach(printMessage);
    await new StreamRun(image, chain, plan, options).run();
  } finally {
    closeChain(chain);
  }
}

/** The base is the backing file already. */
function tellOfNothing(image: string, { backing }: StreamPlan, output: Output): void {
  const line = { filename: image, state: "done", "copied-bytes": 0 };
  const text = printable(`${image}: ${backing?.name} is its backing file already`);
  const json = JSON.stringify({ ...line, "backing-filename": backing?.name });
  print(`${output === "json" ? json : text}\n`);
}

function open(image: string, { format, backingPolicy, base }: StreamCommandOptions): OpenChain {
  const policy = {
    copyOnRead: false,
    detectZeroes: "off",
    discard: "unmap",
    growable: false,
  } as const;
  const writing = { policy, threads: 1, onlyPlaces: true };
  try {
    return openChain(image, { format, backingPolicy, forceShare: false, writing });
  } catch (error) {
    const isInUse = error instanceof StorageError && error.code === "EAGAIN";
    const device = isInUse && error.path === image ? writableDeviceOf(image) : undefined;
    if (device === undefined || base !== undefined) throw error;
    const reason = `is mounted; setfattr -n user.tsimgfs.stream -v start ${device} streams it there`;
    throw new TsimgfsError("EAGAIN", image, reason, { cause: error });
  }
}

/** The device of a mount that shows an image, and can be written to. */
function writableDeviceOf(image: string): string | undefined {
  const { dev, ino } = fs.statSync(image);
  const shows = (path: string): boolean => {
    const stats = fs.statSync(path, { throwIfNoEntry: false });
    return stats?.dev === dev && stats.ino === ino;
  };
  const devices = listMounts().flatMap((mount) => mount.devices);
  return devices.find((device) => shows(device.image) && isWritable(device.device))?.device;
}

function isWritable(path: string): boolean {
  try {
    fs.accessSync(path, fs.constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** One run: until the end, or a signal. */
class StreamRun {
  readonly #image: string;
  readonly #chain: OpenChain;
  readonly #plan: StreamPlan;
  readonly #output: Output;
  readonly #disk: Disk;
  readonly #job: StreamJob;
  readonly #limit: RateLimit;
  readonly #bar: ProgressBar;
  readonly #meter = new RateMeter(performance.now(), 0);
  readonly #copyMeter = new RateMeter(performance.now(), 0);
  #flushedAt = performance.now();
  #toldAt = performance.now();
  #signal: StopSignal | undefined;

  /** @throws {TsimgfsError} the image must not be streamed */
  constructor(image: string, chain: OpenChain, plan: StreamPlan, options: StreamCommandOptions) {
    this.#image = image;
    this.#chain = chain;
    this.#plan = plan;
    this.#output = options.output;
    const resources = { clusterCache: new ClusterCache() };
    this.#disk = attachDisk(chain, resources, { slot: 0, requestMaintenance: undefined });
    refuseSnapshots(this.#disk.chain.image);
    this.#job = new StreamJob(this.#disk, plan.bottom);
    this.#limit = new RateLimit(options.rate);
    this.#bar = new ProgressBar(options.progress === true && options.output === "human");
  }

  async run(): Promise<void> {
    for (const signal of STOP_SIGNALS) {
      process.on(signal, () => {
        this.#signal ??= signal;
      });
    }
    let isDone = false;
    try {
      while (!isDone && this.#signal === undefined) isDone = await this.#step();
    } finally {
      this.#bar.clear();
      // Also after a failure: what was copied is kept.
      this.#disk.close();
    }
    if (isDone) this.#finish();
    else this.#tellOfStop();
  }

  async #step(): Promise<boolean> {
    const start = performance.now();
    const before = this.#job.copied;
    const isDone = this.#job.step();
    const end = performance.now();
    if (end - this.#flushedAt > FLUSH_INTERVAL_MS) {
      this.#disk.flush();
      this.#flushedAt = end;
    }
    this.#show(end);
    const wakeAt = end + this.#limit.pauseAfter(this.#job.copied - before, start, end);
    // Signals are heard of in between.
    await nextTurn();
    while (performance.now() < wakeAt && this.#signal === undefined) {
      await sleep(Math.min(SLEEP_MAX_MS, wakeAt - performance.now()));
    }
    return isDone;
  }

  #show(now: number): void {
    const { done, total } = this.#job;
    this.#bar.draw({ done, total, rate: this.#meter.rateAt(now, done) });
    if (now - this.#toldAt < JSON_INTERVAL_MS) return;
    this.#toldAt = now;
    this.#tell("running");
  }

  /** A line of JSON, if that is wanted. */
  #tell(state: State): void {
    if (this.#output !== "json") return;
    const { done, total, copied } = this.#job;
    const rate = Math.round(this.#copyMeter.rateAt(performance.now(), copied));
    const { backing } = this.#plan;
    const line = {
      filename: this.#image,
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
    const [top] = this.#chain.layers;
    if (top === undefined) throw new RangeError("a chain has at least one image");
    const { backing } = this.#plan;
    setBackingFile(top.layout.format, reopened(top.file), backing);
    this.#tell("done");
    if (this.#output !== "human") return;
    const now = backing === undefined ? "no backing file any more" : `backing file ${backing.name}`;
    print(`${printable(`${this.#image}: ${sizeText(this.#job.copied)} copied; ${now}`)}\n`);
  }

  #tellOfStop(): void {
    if (this.#signal === undefined) return;
    this.#tell("stopped");
    const { done, total } = this.#job;
    const place = `${sizeText(done)} of ${sizeText(total)}`;
    printMessage(
      printable(`${this.#image}: stopped at ${place}; the same command goes on from there`),
    );
    process.exitCode = SIGNAL_STATUS + constants.signals[this.#signal];
  }
}

/** The same open file, with the length that it has by now. */
function reopened(file: OpenChain["layers"][number]["file"]): LocalFile {
  const length = new LocalFile(file).currentLength();
  return new LocalFile({ ...file, length });
}
