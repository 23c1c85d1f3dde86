/** Which parts of a device a hostile-image test reads: all of a small one, samples of a giant one. */

import { SECTOR_SIZE } from "./hostile-outcome.ts";

export interface DeviceRange {
  readonly offset: number;
  readonly length: number;
}

/** Up to this size a device is read whole, bytes. */
export const WHOLE_MAX = 8 * 1024 * 1024;
const SAMPLE = 64 * 1024;

/** Ranges to read, in whole sectors. */
export function sampledRanges(virtualSize: number): DeviceRange[] {
  if (virtualSize <= WHOLE_MAX) {
    return virtualSize === 0 ? [] : [{ offset: 0, length: virtualSize }];
  }
  const middle = Math.floor(virtualSize / 2 / SECTOR_SIZE) * SECTOR_SIZE;
  return [0, middle, virtualSize - SAMPLE].map((offset) => ({ offset, length: SAMPLE }));
}
