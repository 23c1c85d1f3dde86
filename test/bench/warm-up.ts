/** A daemon that has just started is slower: it warms up on a part of the device that is not measured. */

import { MIB } from "./cell.ts";

export interface Part {
  /** Bytes. */
  readonly offset: number;
  readonly size: number;
}

/** One divided by this is the share of the device that is for warming up. */
const WARM_UP_DIVISOR = 8;

/** The two parts of a device, each of whole MiB if the device is. */
export function splitDevice(virtualSize: number): { readonly warmUp: Part; readonly rest: Part } {
  const size = Math.max(1, Math.floor(virtualSize / WARM_UP_DIVISOR / MIB)) * MIB;
  return { warmUp: { offset: 0, size }, rest: { offset: size, size: virtualSize - size } };
}
