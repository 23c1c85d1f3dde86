/** Amendments of qcow2 images as tests want them. */

import type { Qcow2Amendment } from "../../src/formats/qcow2/amend/amend.ts";

const NOTHING: Qcow2Amendment = {
  version: undefined,
  refcountBits: undefined,
  lazyRefcounts: undefined,
  dataFileRaw: undefined,
  dataFile: undefined,
  backingFile: undefined,
  backingFormat: undefined,
  keySlots: undefined,
};

/** All that is not wanted stays as it is. */
export function amendment(wanted: Partial<Qcow2Amendment>): Qcow2Amendment {
  return { ...NOTHING, ...wanted };
}
