/** What reads, writes and discards have in common: their range, their time, and how they fail. */

import { TsimgfsError } from "../../errors.ts";
import { errnoText } from "../../syscalls/errno-names.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { print, printMessage } from "../print.ts";
import type { IoContext } from "./command.ts";
import { IoFailure } from "./failure.ts";
import { parseSize } from "./numbers.ts";
import { type Transfer, transferText } from "./report.ts";

/** Bytes that QEMU does in one request at the most, and so qemu-io. */
const REQUEST_MAX = 2 ** 31 - 512;
export const LIMIT_TEXT = `length cannot exceed ${REQUEST_MAX}`;
/** Bytes that we do at once: whole clusters of every size. */
const PIECE_SIZE = 4 * 1024 * 1024;
const SECTOR_SIZE = 512;

/** A range of a disk, in bytes. */
export interface Range {
  readonly offset: number;
  readonly count: number;
}

/**
 * The range that the words OFFSET COUNT state.
 *
 * @param limitText what is said of a limit on the count; undefined: there is none
 * @throws {IoFailure}
 */
export function parseRange(
  [offsetText = "", countText = ""]: readonly string[],
  limitText: string | undefined,
): Range {
  const offset = parseSize(offsetText);
  const count = parseSize(countText);
  if (count > REQUEST_MAX && limitText !== undefined) {
    throw new IoFailure({ output: `${limitText}, given ${countText}` });
  }
  return { offset, count };
}

/** @throws {IoFailure} a range must be of whole sectors, and is not */
export function requireSectors(range: Range): void {
  for (const name of ["offset", "count"] as const) {
    const value = range[name];
    if (value % SECTOR_SIZE === 0) continue;
    throw new IoFailure({ output: `${value} is not a sector-aligned value for '${name}'` });
  }
}

/** Parts of a range that are done one after the other; none if it is empty. */
export function* piecesOf({ offset, count }: Range): Generator<Range> {
  const end = offset + count;
  for (let at = offset; at < end; ) {
    const next = Math.min(end, (Math.floor(at / PIECE_SIZE) + 1) * PIECE_SIZE);
    yield { offset: at, count: next - at };
    at = next;
  }
}

/** Room for the longest piece of a range. */
export function pieceBuffer({ count }: Range): NativeBuffer {
  return NativeBuffer.allocate(Math.min(PIECE_SIZE, count));
}

/** The seconds that an action takes, > 0. */
export function secondsOf(action: () => void): number {
  const start = process.hrtime.bigint();
  action();
  return Math.max(1, Number(process.hrtime.bigint() - start)) / 1e9;
}

/**
 * Do a request. A range that does not lie in the disk is an I/O error, as for QEMU.
 *
 * @param verb what the line about a failure says failed
 * @returns seconds
 * @throws {IoFailure} it failed; the reason was told
 */
export function attempt(io: IoContext, verb: string, range: Range, action: () => void): number {
  if (range.offset + range.count > io.disk.currentSize()) throw requestFailure(verb, "EIO");
  try {
    return secondsOf(action);
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
    printMessage(error.message);
    throw requestFailure(verb, error.code);
  }
}

/** `read failed: Input/output error`. */
export function requestFailure(verb: string, code: TsimgfsError["code"]): IoFailure {
  return new IoFailure({ output: `${verb} failed: ${errnoText(code)}` });
}

/** How a command reports, by its options. */
export interface ReportOptions {
  isQuiet: boolean;
  form: "people" | "programs";
}

/** Tell what was done, unless that is not wanted. */
export function report({ isQuiet, form }: ReportOptions, transfer: Transfer): void {
  if (!isQuiet) print(transferText(transfer, form));
}
