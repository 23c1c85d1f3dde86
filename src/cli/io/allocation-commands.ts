/** `alloc` and `map`: which bytes the image itself has, and not what is below it. */

import { hex } from "../../errors.ts";
import { print } from "../print.ts";
import { runsOf } from "./allocated-runs.ts";
import type { IoCall, IoCommand, IoContext } from "./command.ts";
import { parseSize } from "./numbers.ts";
import { amountText } from "./report.ts";

const SECTOR_SIZE = 512;

export const ALLOC_COMMAND: IoCommand = {
  name: "alloc",
  words: [1, 2],
  usage: "offset [count]",
  summary: "checks if offset is allocated in the file",
  run: showAllocated,
};

export const MAP_COMMAND: IoCommand = {
  name: "map",
  words: [0, 0],
  // As QEMU: an empty one, which leaves a second space in the help.
  usage: "",
  summary: "prints the allocated areas of a file",
  run: showMap,
};

function showAllocated({ disk }: IoContext, { words }: IoCall): void {
  const [offsetText = "", countText] = words;
  const offset = parseSize(offsetText);
  const count = countText === undefined ? SECTOR_SIZE : parseSize(countText);
  const end = Math.max(offset, Math.min(offset + count, disk.currentSize()));
  let allocated = 0;
  for (const { length, isAllocated } of runsOf(disk, offset, end)) {
    if (isAllocated) allocated += length;
  }
  print(`${allocated}/${end - offset} bytes allocated at offset ${amountText(offset)}\n`);
}

function showMap({ disk }: IoContext): void {
  for (const { offset, length, isAllocated } of runsOf(disk, 0, disk.currentSize())) {
    const what = isAllocated ? "    allocated" : "not allocated";
    const place = `at offset ${amountText(offset)} (${hex(offset)})`;
    print(`${amountText(length)} (${hex(length)}) bytes ${what} ${place}\n`);
  }
}
