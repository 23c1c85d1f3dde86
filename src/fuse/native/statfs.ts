/** Capacities for fuse-native, whose numbers have 32 bits. */

import { TWO_TO_32 } from "../../binary/words.ts";
import type { Capacity } from "../../tree/node.ts";
import type { Statfs } from "./fuse-native.ts";

const NAME_MAX = 255;

/** Where the size in blocks would not fit, blocks are counted in a larger unit. */
export function statfsOf({ blockSize, size }: Capacity): Statfs {
  let unit = blockSize;
  while (Math.ceil(size / unit) >= TWO_TO_32) unit *= 2;
  return { bsize: blockSize, frsize: unit, blocks: Math.ceil(size / unit), namemax: NAME_MAX };
}
