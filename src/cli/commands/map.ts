/** `tsimgfs map`: where the bytes of a disk are, in the fields and the form of qemu-img map. */

import type { Command } from "commander";
import { attachChain } from "../../block/attach-disk.ts";
import type { BackingChain } from "../../block/backing-chain.ts";
import { BlockStatus, BlockStatusWalker } from "../../block/block-status.ts";
import { closeChain, openChain } from "../../block/open-chain.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { hex, printable, UsageError } from "../../errors.ts";
import { ClusterCache } from "../../formats/compression/cluster-cache.ts";
import { type FormatName, NO_OFFSET } from "../../formats/driver.ts";
import {
  backingPolicyOption,
  forceShareOption,
  formatOption,
  type Output,
  outputOption,
  sizeOption,
} from "../options.ts";
import { print, printMessage } from "../print.ts";

interface MapOptions {
  readonly format?: FormatName;
  readonly output: Output;
  readonly startOffset: number;
  readonly maxLength?: number;
  readonly backingPolicy?: BackingPolicy;
  readonly forceShare?: boolean;
}

export function defineMap(command: Command): void {
  command
    .description(
      "Show which parts of a disk are data, zeros or unallocated, and in which file, as qemu-img map does.",
    )
    .argument("<image>")
    .addOption(outputOption())
    .addOption(formatOption("-f, --format <name>"))
    .option("-s, --start-offset <bytes>", "start there", sizeOption("--start-offset"), 0)
    .option("-l, --max-length <bytes>", "show no more than this", sizeOption("--max-length"))
    .addOption(backingPolicyOption())
    .addOption(forceShareOption())
    .addHelpText("after", "\nExample:\n  tsimgfs map --output json vm.qcow2")
    .action(showMap);
}

function showMap(image: string, options: MapOptions): void {
  const { format, backingPolicy, forceShare = false } = options;
  const open = openChain(image, { format, backingPolicy, forceShare });
  try {
    for (const warning of open.warnings) printMessage(warning);
    const chain = attachChain(open.layers, { clusterCache: new ClusterCache() });
    const end = Math.min(
      chain.virtualSize,
      options.startOffset + (options.maxLength ?? chain.virtualSize),
    );
    // As qemu-img: a disk of no bytes is one empty run.
    const empty: Run = { start: 0, status: new BlockStatus() };
    const runs = end === 0 ? [empty] : mergedRuns(chain, options.startOffset, end);
    const printer = options.output === "json" ? new JsonPrinter() : new HumanPrinter(chain, image);
    for (const run of runs) printer.add(run);
    printer.end();
  } finally {
    closeChain(open);
  }
}

/** A run with one status, after merging. */
interface Run {
  readonly start: number;
  readonly status: BlockStatus;
}

function* mergedRuns(chain: BackingChain, start: number, end: number): Generator<Run> {
  const walker = new BlockStatusWalker(chain);
  let current: Run | undefined;
  let offset = start;
  while (offset < end) {
    const status = new BlockStatus();
    walker.statusAt(offset, end - offset, status);
    if (current !== undefined && continues(current.status, status)) {
      current.status.length += status.length;
    } else {
      if (current !== undefined) yield current;
      current = { start: offset, status };
    }
    offset += status.length;
  }
  if (current !== undefined) yield current;
}

function continues(first: BlockStatus, next: BlockStatus): boolean {
  return (
    first.zero === next.zero &&
    first.data === next.data &&
    first.compressed === next.compressed &&
    first.present === next.present &&
    first.depth === next.depth &&
    (first.hostOffset === NO_OFFSET
      ? next.hostOffset === NO_OFFSET
      : next.hostOffset === first.hostOffset + first.length)
  );
}

/** Output is collected up to this many characters. */
const BUFFER_LENGTH = 65536;

class JsonPrinter {
  #text = "";
  #first = true;

  add({ start, status }: Run): void {
    const { length, depth, present, zero, data, compressed, hostOffset } = status;
    const offset = hostOffset === NO_OFFSET ? "" : `, "offset": ${hostOffset}`;
    this.#text += `${this.#first ? "[" : ",\n"}{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, "zero": ${zero}, "data": ${data}, "compressed": ${compressed}${offset}}`;
    this.#first = false;
    if (this.#text.length > BUFFER_LENGTH) this.#flush();
  }

  end(): void {
    this.#text += this.#first ? "[]\n" : "]\n";
    this.#flush();
  }

  #flush(): void {
    print(this.#text);
    this.#text = "";
  }
}

const COLUMN = 16;

class HumanPrinter {
  readonly #chain: BackingChain;
  readonly #image: string;
  #text = `${"Offset".padEnd(COLUMN)}${"Length".padEnd(COLUMN)}${"Mapped to".padEnd(COLUMN)}File\n`;

  constructor(chain: BackingChain, image: string) {
    this.#chain = chain;
    this.#image = image;
  }

  add({ start, status }: Run): void {
    if (!status.data || status.zero) return;
    if (status.hostOffset === NO_OFFSET) {
      this.end();
      throw new UsageError(
        this.#image,
        "has compressed clusters, which only --output json can show",
      );
    }
    const file = this.#chain.images[status.depth]?.dataStorage.path ?? "";
    const columns = [start, status.length, status.hostOffset].map((value) =>
      (value === 0 ? "0" : hex(value)).padEnd(COLUMN),
    );
    this.#text += `${columns.join("")}${printable(file)}\n`;
    if (this.#text.length > BUFFER_LENGTH) this.end();
  }

  end(): void {
    print(this.#text);
    this.#text = "";
  }
}
