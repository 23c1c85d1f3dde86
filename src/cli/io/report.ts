/** Sizes, times and bytes in the words of qemu-io. */

import { decimals } from "../decimals.ts";

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] as const;

/** `64 KiB`, `1.500 MiB`, `17 bytes`: three decimals where they are not all zero. */
export function amountText(value: number): string {
  let scaled = value;
  let unit = 0;
  while (scaled >= 1024 && unit < UNITS.length - 1) {
    scaled /= 1024;
    unit++;
  }
  const text = unit === 0 ? scaled.toFixed(6) : decimals(scaled, 3);
  const zeros = text.indexOf(".000");
  return `${zeros < 0 ? text : text.slice(0, zeros)} ${UNITS[unit]}`;
}

/** `00.01 sec`; from a second on, or always if `fixed`, `0:00:01.23`. */
function durationText(seconds: number, fixed: boolean): string {
  const two = (value: number): string => value.toFixed(2).padStart(5, "0");
  if (!fixed && seconds < 1) return `${two(seconds)} sec`;
  const minutes = Math.floor(seconds / 60);
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${two(seconds % 60)}`;
}

/** What was done, and how long it took. */
export interface Transfer {
  /** `read`, `wrote` or `discard`. */
  readonly verb: string;
  readonly offset: number;
  /** Bytes. */
  readonly count: number;
  /** Seconds, > 0. */
  readonly seconds: number;
}

/** The lines after a command that moved bytes; one line for programs: bytes, ops, time and both rates. */
export function transferText(transfer: Transfer, form: "people" | "programs"): string {
  const { verb, offset, count, seconds } = transfer;
  const bytesPerSecond = count / seconds;
  const opsPerSecond = 1 / seconds;
  if (form === "programs") {
    const rates = `${bytesPerSecond.toFixed(3)},${opsPerSecond.toFixed(3)}`;
    return `${count},1,${durationText(seconds, true)},${rates}\n`;
  }
  const rates = `${amountText(bytesPerSecond)}/sec and ${opsPerSecond.toFixed(4)} ops/sec`;
  return (
    `${verb} ${count}/${count} bytes at offset ${offset}\n` +
    `${amountText(count)}, 1 ops; ${durationText(seconds, false)} (${rates})\n`
  );
}

const DUMP_COLUMNS = 16;

/** Bytes in lines of 16: their offset, each in hexadecimal, and those that are letters or digits. */
export function dumpText(bytes: Uint8Array, offset: number): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += DUMP_COLUMNS) {
    const row = bytes.subarray(at, at + DUMP_COLUMNS);
    const hexadecimal = Array.from(row, (byte) => `${byte.toString(16).padStart(2, "0")} `);
    const letters = Array.from(row, (byte) => String.fromCharCode(byte)).map((letter) =>
      /[0-9A-Za-z]/.test(letter) ? letter : ".",
    );
    const place = (offset + at).toString(16).padStart(8, "0");
    text += `${place}:  ${hexadecimal.join("")} ${letters.join("")}\n`;
  }
  return text;
}
