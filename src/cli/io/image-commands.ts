/** Commands about the disk as a whole: `length`, `truncate`, `flush`, `info`. */

import { describeImage, type ImageDescription } from "../../block/describe-image.ts";
import { printable } from "../../errors.ts";
import { fieldLines } from "../field-lines.ts";
import { print } from "../print.ts";
import {
  type IoCall,
  type IoCommand,
  type IoContext,
  parseOptions,
  usageFailure,
} from "./command.ts";
import { IoFailure } from "./failure.ts";
import { parseSize } from "./numbers.ts";
import { amountText } from "./report.ts";

const SECTOR_SIZE = 512;
/** Bytes of an entry of L2 tables: qcow2 specification, "Cluster mapping". */
const L2_ENTRY_SIZE = 8;
const EXTENDED_L2_ENTRY_SIZE = 16;

/** How space for what is new can be prepared; ours are the first two. */
const PREALLOCATIONS = ["off", "falloc", "metadata", "full"];

export const LENGTH_COMMAND: IoCommand = {
  name: "length",
  alias: "l",
  words: [0, 0],
  summary: "gets the length of the current file",
  run: ({ disk }) => print(`${amountText(disk.currentSize())}\n`),
};

export const FLUSH_COMMAND: IoCommand = {
  name: "flush",
  alias: "f",
  words: [0, 0],
  summary: "flush all in-core file state to disk",
  run: flush,
};

export const INFO_COMMAND: IoCommand = {
  name: "info",
  alias: "i",
  words: [0, 0],
  summary: "prints information about the current file",
  run: showInfo,
};

export const TRUNCATE_COMMAND: IoCommand = {
  name: "truncate",
  alias: "t",
  words: [1, 3],
  usage: "[-m prealloc_mode] off",
  summary: "truncates the current file at the given offset",
  help: [
    "What is new reads as zeros; what is cut off is lost.",
    "",
    "-m  off, or falloc: what is new gets its space now",
    "",
    "Example: truncate 10G",
  ],
  writes: true,
  run: truncate,
};

function flush({ disk }: IoContext): void {
  disk.flush();
  // What was freed before is given back to the host.
  if (disk.hasLateWork()) disk.maintain();
}

function truncate({ path, disk }: IoContext, call: IoCall): void {
  let preallocation = "off";
  const operands = parseOptions(TRUNCATE_COMMAND, call, "m:", (_letter, value) => {
    if (!PREALLOCATIONS.includes(value)) {
      throw refusal(path, `Invalid preallocation mode '${value}'`);
    }
    preallocation = value;
  });
  const [text] = operands;
  if (text === undefined || operands.length > 1) throw usageFailure(TRUNCATE_COMMAND);
  const size = parseSize(text);
  if (!Number.isSafeInteger(size)) {
    throw refusal(path, `a size of ${text} is above the limit of 2^53 - ${SECTOR_SIZE} bytes`);
  }
  const old = disk.currentSize();
  if (disk.chain.image.format !== "raw" && size % SECTOR_SIZE !== 0) {
    throw refusal(path, `The new size must be a multiple of ${SECTOR_SIZE}`);
  }
  if (preallocation !== "off") {
    if (size < old) throw refusal(path, "Preallocation can't be used for shrinking an image");
    if (preallocation !== "falloc") {
      throw refusal(path, `Unsupported preallocation mode '${preallocation}'`);
    }
  }
  disk.resize(size);
  if (preallocation === "falloc" && size > old) disk.preallocate(old, disk.currentSize() - old);
}

function refusal(path: string, reason: string): IoFailure {
  return new IoFailure({ errors: printable(`tsimgfs: ${path}: ${reason}`) });
}

function showInfo({ path, format }: IoContext): void {
  // The lock on it is our own.
  const image = describeImage(path, { format, forceShare: true });
  print(`format name: ${image.format}\n`);
  print(`cluster size: ${amountText(image.clusterSize ?? 0)}\n`);
  print(`vm state offset: ${amountText(vmStateOffset(image))}\n`);
  const data = image.specific?.["data"];
  if (data === undefined) return;
  print(`${["Format specific information:", ...fieldLines(data, 1)].join("\n")}\n`);
}

/** Where snapshots keep VM state: after what the L1 entries of the disk can map; 0: nowhere. */
function vmStateOffset({
  format,
  clusterSize = 0,
  virtualSize,
  specific,
}: ImageDescription): number {
  if (format !== "qcow2") return 0;
  const data = specific?.["data"];
  const isExtended = data !== null && typeof data === "object" && isTrue(data, "extended-l2");
  const l2Entries = clusterSize / (isExtended ? EXTENDED_L2_ENTRY_SIZE : L2_ENTRY_SIZE);
  const l2Coverage = clusterSize * l2Entries;
  return Math.ceil(virtualSize / l2Coverage) * l2Coverage;
}

function isTrue(data: object, name: string): boolean {
  return name in data && Reflect.get(data, name) === true;
}
