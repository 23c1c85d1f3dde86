/** `write`: change bytes of the disk. */

import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import {
  type IoCall,
  type IoCommand,
  type IoContext,
  parseOptions,
  usageFailure,
} from "./command.ts";
import { IoFailure } from "./failure.ts";
import { parsePattern } from "./numbers.ts";
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
import { WriteSource } from "./write-source.ts";

/** What is written where nothing is stated. */
const DEFAULT_PATTERN = 0xcd;

export const WRITE_COMMAND: IoCommand = {
  name: "write",
  alias: "w",
  words: [2, Number.POSITIVE_INFINITY],
  usage: "[-bcCfnquz] [-P pattern | -s source_file] off len",
  summary: "writes a number of bytes at a specified offset",
  help: [
    "-b  the VM state, which is not part of the disk: always fails here",
    "-c  compress: whole clusters that are not allocated yet",
    "-C  report in one line for programs: bytes, ops, time, bytes/s, ops/s",
    "-f  what was written is on the disk when the command ends",
    "-n  with -z: fail where zeros would have to be written",
    "-p  no effect",
    "-P  the byte to write; default: 0xcd",
    "-q  do not report",
    "-s  write what is in this file, again and again",
    "-u  with -z: the space is not needed any more",
    "-z  write zeros, by tables where they can say it",
    "",
    "Example: write -P 0x41 1M 64k",
  ],
  writes: true,
  run: write,
};

interface WriteOptions extends ReportOptions {
  isVmState: boolean;
  compresses: boolean;
  isDurable: boolean;
  unmaps: boolean;
  noFallback: boolean;
  isZero: boolean;
  pattern: number | undefined;
  sourcePath: string | undefined;
}

function parseWriteOptions(call: IoCall): { options: WriteOptions; operands: string[] } {
  const options: WriteOptions = {
    isQuiet: false,
    form: "people",
    isVmState: false,
    compresses: false,
    isDurable: false,
    unmaps: false,
    noFallback: false,
    isZero: false,
    pattern: undefined,
    sourcePath: undefined,
  };
  const operands = parseOptions(WRITE_COMMAND, call, "bcCfnpP:qs:uz", (letter, value) => {
    if (letter === "b") options.isVmState = true;
    else if (letter === "c") options.compresses = true;
    else if (letter === "C") options.form = "programs";
    else if (letter === "f") options.isDurable = true;
    else if (letter === "n") options.noFallback = true;
    else if (letter === "P") options.pattern = parsePattern(value);
    else if (letter === "q") options.isQuiet = true;
    else if (letter === "s") options.sourcePath = value;
    else if (letter === "u") options.unmaps = true;
    else if (letter === "z") options.isZero = true;
  });
  return { options, operands };
}

/** Why options do not go together, or undefined. */
function contradiction(options: WriteOptions): string | undefined {
  const { isVmState, compresses, isDurable, unmaps, noFallback, isZero } = options;
  if (isVmState && isZero) return "-b and -z cannot be specified at the same time";
  if (isDurable && (isVmState || compresses)) {
    return "-f and -b or -c cannot be specified at the same time";
  }
  if (noFallback && !isZero) return "-n requires -z to be specified";
  if (unmaps && !isZero) return "-u requires -z to be specified";
  const contents = [isZero, options.pattern !== undefined, options.sourcePath !== undefined];
  if (contents.filter((isStated) => isStated).length > 1) {
    return "Only one of -z, -P, and -s can be specified at the same time";
  }
  return undefined;
}

function write(io: IoContext, call: IoCall): void {
  const { options, operands } = parseWriteOptions(call);
  if (operands.length !== 2) throw usageFailure(WRITE_COMMAND);
  const reason = contradiction(options);
  if (reason !== undefined) throw new IoFailure({ output: reason });
  const limitText = options.noFallback ? undefined : `${LIMIT_TEXT} without -n`;
  const range = parseRange(operands, limitText);
  if (options.isVmState || options.compresses) requireSectors(range);
  const { pattern = DEFAULT_PATTERN, sourcePath, unmaps: unmap, noFallback } = options;
  const source =
    sourcePath === undefined
      ? WriteSource.ofByte(pattern)
      : WriteSource.ofFile(sourcePath, range.count);
  if (options.isVmState) throw requestFailure("write", "ENOTSUP");
  const seconds = attempt(io, "write", range, () => {
    if (options.isZero) {
      io.disk.writeZeroes(range.offset, range.count, { unmap, noFallback, explicit: true });
    } else if (options.compresses) writeCompressed(io, range, source);
    else writePieces(io, range, source);
    if (options.isDurable) io.disk.flush();
  });
  report(options, { verb: "wrote", ...range, seconds });
}

function writePieces({ disk }: IoContext, range: Range, source: WriteSource): void {
  const buffer = pieceBuffer(range);
  for (const { offset, count } of piecesOf(range)) {
    source.fill(buffer, count, offset - range.offset);
    disk.write(offset, count, buffer, 0);
  }
}

/** In one go: what is not of whole clusters is refused before anything is written. */
function writeCompressed({ disk }: IoContext, { offset, count }: Range, source: WriteSource): void {
  const buffer = NativeBuffer.allocate(count);
  source.fill(buffer, count, 0);
  disk.writeCompressed(offset, count, buffer, 0);
}
