/** `tsimgfs map`: where the bytes of a disk are, in the fields and the form of qemu-img map, or as a picture. */

import fs from "node:fs";
import { attachChain } from "../../block/attach-disk.ts";
import type { BackingChain } from "../../block/backing-chain.ts";
import { BlockStatus, BlockStatusWalker } from "../../block/block-status.ts";
import { closeChain, type OpenChain, openChain } from "../../block/open-chain.ts";
import { readPictureMap } from "../../block/picture-map.ts";
import type { BackingPolicy } from "../../block/referenced-file.ts";
import { hex, printable, UsageError } from "../../errors.ts";
import { ClusterCache } from "../../formats/compression/cluster-cache.ts";
import { type FormatName, NO_OFFSET } from "../../formats/driver.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { DocumentedOption } from "../documented-option.ts";
import {
  backingPolicyOption,
  forceShareOption,
  formatOption,
  type Output,
  outputOption,
  sizeOption,
} from "../options.ts";
import { type PictureOutput, pictureOutput } from "../picture/output.ts";
import { print, printNote } from "../print.ts";

interface MapOptions {
  readonly format?: FormatName;
  readonly output: Output;
  readonly startOffset: number;
  readonly maxLength?: number;
  readonly backingPolicy?: BackingPolicy;
  readonly forceShare?: boolean;
  /** The file; true: none was named. */
  readonly picture?: string | true;
  readonly dark?: boolean;
}

export function defineMap(command: DocumentedCommand): void {
  command
    .description(
      "Show which parts of a disk are data, zeros or unallocated, and in which file, as qemu-img map does.",
    )
    .argument("[image]")
    .usage("[options] <image>")
    .addOption(outputOption())
    .addOption(formatOption("-f, --format <name>"))
    .option(
      "-s, --start-offset <bytes>",
      "start at this offset of the disk",
      sizeOption("--start-offset"),
      0,
    )
    .option(
      "-l, --max-length <bytes>",
      "show no more than this many bytes",
      sizeOption("--max-length"),
    )
    .addOption(backingPolicyOption())
    .addOption(forceShareOption())
    .addOption(
      new DocumentedOption(
        "--picture [file]",
        "draw a picture: into a .svg or .png file, or on the terminal",
      ).inManual(
        "Draw the disk and the image file as two maps of cells: into a file named .svg or .png (which is replaced); with -, as SVG on standard output; otherwise for the terminal.",
      ),
    )
    .option("--dark", "use a dark background (default: light; SVG: the viewer's choice)")
    .document({
      details: [
        "Pictures have one colour per use: data, compressed, zero, from a backing file, unallocated, hole, metadata, snapshots only, leaked, free. A cell with several uses is divided in proportion to their bytes; on a terminal it shows a use for which an eighth or more of it is stored, otherwise the use of most of it. Marks under cells (on a terminal: a darker colour) show where the order in the file is not that of the disk. If standard output is not a terminal, or NO_COLOR is set, cells are letters.",
      ],
      examples: [
        ["Extents for a program", "tsimgfs map --output json vm.qcow2"],
        ["A picture on the terminal", "tsimgfs map --picture vm.qcow2"],
        ["A picture in a file", "tsimgfs map --picture vm.svg vm.qcow2"],
      ],
      seeAlso: ["stats", "info", "qemu-img(1)"],
    })
    .action(runMap);
}

function runMap(argument: string | undefined, given: MapOptions, command: DocumentedCommand): void {
  // `--picture IMAGE` without a file: what looks like the option's value is the image.
  const isImage = argument === undefined && typeof given.picture === "string";
  const image = isImage && !/^-$|\.(svg|png)$/i.test(given.picture) ? given.picture : argument;
  if (image === undefined) command.error("missing required argument 'image'");
  const options: MapOptions = isImage ? { ...given, picture: true } : given;
  if (options.picture === undefined) {
    if (options.dark === true) throw new UsageError("--dark", "is for pictures: see --picture");
    showMap(image, options);
  } else {
    drawPicture(image, options);
  }
}

function open(image: string, { format, backingPolicy, forceShare = false }: MapOptions): OpenChain {
  return openChain(image, { format, backingPolicy, forceShare, onlyTables: true });
}

function drawPicture(image: string, options: MapOptions): void {
  const { output, startOffset, maxLength, picture, dark } = options;
  if (output === "json") {
    throw new UsageError("--picture", "is not JSON: leave out --output json");
  }
  if (startOffset !== 0 || maxLength !== undefined) {
    throw new UsageError(
      "--picture",
      "shows the whole disk: leave out --start-offset and --max-length",
    );
  }
  const theme = dark === true ? "dark" : undefined;
  const drawing = pictureOutput(picture === true ? undefined : picture, theme);
  const opened = open(image, options);
  try {
    for (const warning of opened.warnings) printNote(warning);
    requireOtherFile(drawing, opened);
    const chain = attachChain(opened.layers, { clusterCache: new ClusterCache() });
    drawing.write(readPictureMap(chain, drawing.cellsMax));
  } finally {
    closeChain(opened);
  }
}

/** A raw disk may be named disk.png: a picture must not replace it, by whatever name. */
function requireOtherFile({ path }: PictureOutput, { layers }: OpenChain): void {
  if (path === undefined || !fs.existsSync(path)) return;
  const target = fs.statSync(path);
  for (const { file, dataFile } of layers) {
    for (const used of dataFile === undefined ? [file] : [file, dataFile]) {
      const { dev, ino } = fs.fstatSync(used.fd);
      if (dev === target.dev && ino === target.ino) {
        throw new UsageError(path, "is the image itself, or what it refers to: not overwritten");
      }
    }
  }
  if (!target.isFile() && !target.isFIFO() && !target.isCharacterDevice()) {
    throw new UsageError(path, "is not a file that a picture could replace");
  }
}

function showMap(image: string, options: MapOptions): void {
  const opened = open(image, options);
  try {
    for (const warning of opened.warnings) printNote(warning);
    const chain = attachChain(opened.layers, { clusterCache: new ClusterCache() });
    const { startOffset: start } = options;
    const end = Math.min(chain.virtualSize, start + (options.maxLength ?? chain.virtualSize));
    // As qemu-img: no bytes are one empty run.
    const empty: Run = { start, status: new BlockStatus() };
    const runs = end <= start ? [empty] : mergedRuns(chain, start, end);
    const printer = options.output === "json" ? new JsonPrinter() : new HumanPrinter(chain, image);
    for (const run of runs) printer.add(run);
    printer.end();
  } finally {
    closeChain(opened);
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
