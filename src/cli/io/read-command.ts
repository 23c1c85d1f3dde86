/** `read`: show bytes of the disk, or compare them with a pattern. */

import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { print } from "../print.ts";
import {
  type IoCall,
  type IoCommand,
  type IoContext,
  parseOptions,
  usageFailure,
} from "./command.ts";
import { IoFailure } from "./failure.ts";
import { parsePattern, parseSize } from "./numbers.ts";
import { dumpText } from "./report.ts";
import {
  attempt,
  LIMIT_TEXT,
  parseRange,
  pieceBuffer,
  piecesOf,
  type Range,
  type ReportOptions,
  report,
  requestFailure,
  requireSectors,
} from "./request.ts";

/** Bytes that are written as text at once. */
const DUMP_PIECE = 64 * 1024;

export const READ_COMMAND: IoCommand = {
  name: "read",
  alias: "r",
  words: [2, Number.POSITIVE_INFINITY],
  usage: "[-abCqv] [-P pattern [-s off] [-l len]] off len",
  summary: "reads a number of bytes at a specified offset",
  help: [
    "-b  the VM state, which is not part of the disk: always fails here",
    "-C  report in one line for programs: bytes, ops, time, bytes/s, ops/s",
    "-l  how many bytes must be the pattern; default: all",
    "-p  no effect",
    "-P  fail unless all bytes are this one",
    "-q  do not report",
    "-s  where the bytes that must be the pattern start, from the offset on",
    "-v  show the bytes",
    "",
    "Example: read -P 0 0 64k",
  ],
  run: read,
};

interface ReadOptions extends ReportOptions {
  isVmState: boolean;
  isVerbose: boolean;
  pattern: number | undefined;
  patternStart: number | undefined;
  patternLength: number | undefined;
}

function parseReadOptions(call: IoCall): { options: ReadOptions; operands: string[] } {
  const options: ReadOptions = {
    isQuiet: false,
    form: "people",
    isVmState: false,
    isVerbose: false,
    pattern: undefined,
    patternStart: undefined,
    patternLength: undefined,
  };
  const operands = parseOptions(READ_COMMAND, call, "bCl:pP:qs:v", (letter, value) => {
    if (letter === "b") options.isVmState = true;
    else if (letter === "C") options.form = "programs";
    else if (letter === "l") options.patternLength = parseSize(value);
    else if (letter === "P") options.pattern = parsePattern(value);
    else if (letter === "q") options.isQuiet = true;
    else if (letter === "s") options.patternStart = parseSize(value);
    else if (letter === "v") options.isVerbose = true;
  });
  return { options, operands };
}

function read(io: IoContext, call: IoCall): void {
  const { options, operands } = parseReadOptions(call);
  if (operands.length !== 2) throw usageFailure(READ_COMMAND);
  const range = parseRange(operands, LIMIT_TEXT);
  const { pattern, patternStart = 0 } = options;
  if (pattern === undefined && (options.patternLength ?? options.patternStart) !== undefined) {
    throw usageFailure(READ_COMMAND);
  }
  const patternLength = options.patternLength ?? range.count - patternStart;
  if (patternLength < 0 || patternStart + patternLength > range.count) {
    throw new IoFailure({ output: "pattern verification range exceeds end of read data" });
  }
  if (options.isVmState) {
    requireSectors(range);
    throw requestFailure("read", "ENOTSUP");
  }
  const expected = { offset: range.offset + patternStart, count: patternLength };
  let isAsExpected = true;
  const seconds = attempt(io, "read", range, () => {
    isAsExpected = readPieces(io, range, expected, pattern);
  });
  const mismatch = `Pattern verification failed at offset ${expected.offset}, ${patternLength} bytes`;
  if (!isAsExpected) print(`${mismatch}\n`);
  if (options.isVerbose && !options.isQuiet) attempt(io, "read", range, () => dump(io, range));
  report(options, { verb: "read", ...range, seconds });
  // It was told, and the report comes all the same.
  if (!isAsExpected) throw new IoFailure({});
}

/** Read all, and tell whether all bytes of a range within are the pattern. */
function readPieces(
  { disk }: IoContext,
  range: Range,
  expected: Range,
  pattern: number | undefined,
): boolean {
  const buffer = pieceBuffer(range);
  const wanted = Buffer.alloc(pattern === undefined ? 0 : buffer.length, pattern);
  let isAsExpected = true;
  for (const { offset, count } of piecesOf(range)) {
    disk.read(offset, count, buffer, 0);
    if (pattern === undefined) continue;
    const from = Math.max(expected.offset - offset, 0);
    const to = Math.max(Math.min(expected.offset + expected.count - offset, count), from);
    if (!wanted.subarray(0, to - from).equals(buffer.bytes.subarray(from, to))) {
      isAsExpected = false;
    }
  }
  return isAsExpected;
}

function dump({ disk }: IoContext, range: Range): void {
  const buffer = NativeBuffer.allocate(DUMP_PIECE);
  for (let done = 0; done < range.count; done += DUMP_PIECE) {
    const count = Math.min(DUMP_PIECE, range.count - done);
    disk.read(range.offset + done, count, buffer, 0);
    print(dumpText(buffer.bytes.subarray(0, count), range.offset + done));
  }
}
