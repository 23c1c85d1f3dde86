/** Entries of refcount blocks, all widths. Source: qcow2 specification, "Host cluster management". */

import { joinHalves, TWO_TO_32 } from "../../binary/words.ts";

/**
 * Entry `index` of a part of a refcount block; above 2^53 - 1, for widths of 64 bits, rounded.
 *
 * @param index counted from the start of `view`
 * @param bits 1, 2, 4, 8, 16, 32 or 64
 */
export function readRefcount(view: DataView, index: number, bits: number): number {
  switch (bits) {
    case 16:
      return view.getUint16(index * 2);
    case 8:
      return view.getUint8(index);
    case 32:
      return view.getUint32(index * 4);
    case 64:
      return joinHalves(view.getUint32(index * 8), view.getUint32(index * 8 + 4));
    default: {
      // Several in a byte, from its lowest bit on.
      const bit = index * bits;
      return (view.getUint8(Math.floor(bit / 8)) >>> (bit % 8)) & (2 ** bits - 1);
    }
  }
}

/** As `readRefcount`, to write; `value` fits the width. */
export function writeRefcount(view: DataView, index: number, bits: number, value: number): void {
  switch (bits) {
    case 16:
      view.setUint16(index * 2, value);
      break;
    case 8:
      view.setUint8(index, value);
      break;
    case 32:
      view.setUint32(index * 4, value);
      break;
    case 64:
      view.setUint32(index * 8, Math.floor(value / TWO_TO_32));
      view.setUint32(index * 8 + 4, value % TWO_TO_32);
      break;
    default: {
      const bit = index * bits;
      const at = Math.floor(bit / 8);
      const shift = bit % 8;
      const mask = (2 ** bits - 1) << shift;
      view.setUint8(at, (view.getUint8(at) & ~mask) | (value << shift));
    }
  }
}
