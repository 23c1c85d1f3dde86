/** `tsimgfs bench`: how fast an image is read or written, with the options and the report of qemu-img bench. */

import type { Disk } from "../../block/disk.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { TsimgfsError, UsageError } from "../../errors.ts";
import type { FormatName } from "../../formats/driver.ts";
import type { CacheMode } from "../../storage/cache-mode.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { DocumentedOption } from "../documented-option.ts";
import { type LongWork, runLongWork } from "../long-work.ts";
import { openOffline, PLAIN_WRITING } from "../offline-disk.ts";
import {
  backingPolicyOption,
  cacheOption,
  forceShareOption,
  formatOption,
  numberOption,
  oneOf,
  quietOption,
  sizeOption,
} from "../options.ts";
import { print, printMessage } from "../print.ts";
import {
  backingSecretOption,
  forgetSecrets,
  type SecretOptions,
  secretOption,
} from "../secrets.ts";
import { signalStatus } from "../stop-signals.ts";

interface BenchOptions extends SecretOptions {
  readonly count: number;
  readonly depth: number;
  readonly format?: FormatName;
  readonly flushInterval?: number;
  readonly offset: number;
  readonly pattern?: number;
  readonly quiet?: boolean;
  readonly bufferSize: number;
  readonly stepSize?: number;
  readonly write?: boolean;
  readonly cache?: CacheMode;
  readonly forceShare?: boolean;
  readonly backingPolicy?: BackingPolicy;
}

/** qemu-img's defaults and limits. */
const COUNT_DEFAULT = 75_000;
const DEPTH_DEFAULT = 64;
const BUFFER_SIZE_DEFAULT = 4096;
const INT_MAX = 2 ** 31 - 1;
const PATTERN_MAX = 255;
const AIO_MODES = ["threads", "native", "io_uring"] as const;
type AioMode = (typeof AIO_MODES)[number];
/** A step of the run takes about so long, ms. */
const STEP_MS = 20;

export function defineBench(command: DocumentedCommand): void {
  command
    .description(
      "Measure how fast an image is read or written, as qemu-img bench does, with one request at a time.",
    )
    .argument("<image>")
    .option(
      "-c, --count <number>",
      "number of requests",
      numberOption("-c", 0, INT_MAX),
      COUNT_DEFAULT,
    )
    .addOption(
      new DocumentedOption(
        "-d, --depth <number>",
        "no effect, since requests do not overlap; --flush-interval is at least this",
      )
        .minor()
        .default(DEPTH_DEFAULT)
        .argParser(numberOption("-d", 1, INT_MAX)),
    )
    .addOption(formatOption("-f, --format <name>"))
    .option(
      "--flush-interval <number>",
      "flush after this many writes",
      numberOption("--flush-interval", 1, INT_MAX),
    )
    .addOption(
      new DocumentedOption("--no-drain", "no effect, since no request overtakes a flush").minor(),
    )
    .addOption(
      new DocumentedOption("-i, --aio <mode>", "threads, native or io_uring; no effect")
        .minor()
        .argParser(oneOf<AioMode>("-i", AIO_MODES)),
    )
    .addOption(new DocumentedOption("-n, --native", "no effect, the same as -i native").minor())
    .option("-o, --offset <offset>", "offset of the first request", sizeOption("-o"), 0)
    .option(
      "--pattern <byte>",
      "value of the bytes that are written",
      numberOption("--pattern", 0, PATTERN_MAX),
    )
    .option(
      "-s, --buffer-size <size>",
      "size of each request",
      sizeOption("-s"),
      BUFFER_SIZE_DEFAULT,
    )
    .option("-S, --step-size <size>", "distance from one request to the next", sizeOption("-S"))
    .option("-w, --write", "write, which overwrites the data of the image")
    .addOption(quietOption())
    .addOption(cacheOption("-t, --cache <mode>", "image"))
    .addOption(forceShareOption())
    .addOption(backingPolicyOption())
    .addOption(secretOption())
    .addOption(backingSecretOption())
    .document({
      examples: [["Sequential reads of 64 KiB", "tsimgfs bench -c 10000 -s 64k vm.qcow2"]],
      seeAlso: ["stats", "io", "qemu-img(1)"],
    })
    .action(bench);
}

async function bench(path: string, options: BenchOptions): Promise<void> {
  const { write = false, flushInterval, depth, quiet = false, bufferSize } = options;
  if (flushInterval !== undefined && !write) {
    throw new UsageError("--flush-interval", "is for writes only (-w)");
  }
  if (flushInterval !== undefined && flushInterval < depth) {
    throw new UsageError("--flush-interval", `${flushInterval} is less than the depth, ${depth}`);
  }
  if (bufferSize < 1 || bufferSize > INT_MAX) {
    throw new UsageError("-s", `${bufferSize} is not a size in 1..${INT_MAX}`);
  }
  const image = openOffline(path, options, write ? { policy: PLAIN_WRITING } : undefined);
  forgetSecrets();
  try {
    const run = new BenchRun(image.disk, path, options);
    if (!quiet) print(announcement(options, run.stepSize));
    const start = performance.now();
    const signal = await runLongWork(run, { progress: false });
    const seconds = (performance.now() - start) / 1000;
    if (signal !== undefined) {
      printMessage(`${path}: stopped after ${run.done} of ${run.total} requests`);
      process.exitCode = signalStatus(signal);
    } else if (!quiet) print(`Run completed in ${seconds.toFixed(3)} seconds.\n`);
  } finally {
    image.close();
  }
}

function announcement(options: BenchOptions, stepSize: number): string {
  const { count, write = false, bufferSize, depth, offset, flushInterval } = options;
  const kind = write ? "write" : "read";
  const flushes =
    flushInterval === undefined ? "" : `Sending flush every ${flushInterval} requests\n`;
  return (
    `Sending ${count} ${kind} requests, ${bufferSize} bytes each, ${depth} in parallel ` +
    `(starting at offset ${offset}, step size ${stepSize})\n${flushes}`
  );
}

/**
 * The requests. What goes on behind the disk's end begins again at its start, as much further on; a request that
 * crosses the end fails.
 */
class BenchRun implements LongWork {
  readonly total: number;
  /** Bytes. */
  readonly stepSize: number;
  done = 0;
  readonly #disk: Disk;
  readonly #path: string;
  readonly #writes: boolean;
  readonly #flushInterval: number | undefined;
  readonly #bufferSize: number;
  readonly #buffer: NativeBuffer;
  #offset: number;

  constructor(disk: Disk, path: string, options: BenchOptions) {
    const { count, bufferSize, stepSize = 0, offset, pattern, write = false } = options;
    this.#disk = disk;
    this.#path = path;
    this.total = count;
    this.stepSize = stepSize === 0 ? bufferSize : stepSize;
    this.#writes = write;
    this.#flushInterval = options.flushInterval;
    this.#bufferSize = bufferSize;
    this.#offset = offset;
    this.#buffer = NativeBuffer.allocate(bufferSize);
    if (pattern !== undefined) this.#buffer.bytes.fill(pattern);
  }

  step(): boolean {
    const end = performance.now() + STEP_MS;
    while (this.done < this.total && performance.now() < end) this.#request();
    return this.done >= this.total;
  }

  #request(): void {
    const disk = this.#disk;
    const offset = this.#offset;
    if (offset + this.#bufferSize > disk.virtualSize) throw this.#pastEnd();
    if (this.#writes) disk.write(offset, this.#bufferSize, this.#buffer, 0);
    else disk.read(offset, this.#bufferSize, this.#buffer, 0);
    this.done++;
    if (this.#flushInterval !== undefined && this.done % this.#flushInterval === 0) disk.flush();
    this.#offset = (offset + this.stepSize) % disk.virtualSize;
  }

  #pastEnd(): TsimgfsError {
    const request = `request ${this.done + 1}, of ${this.#bufferSize} bytes at ${this.#offset}`;
    const reason = `${request}, crosses the end of the disk, ${this.#disk.virtualSize} bytes`;
    return new TsimgfsError("EIO", this.#path, reason);
  }
}
