// A file system for tests: the files of a directory, on a medium that answers reads late, or not at all. Reads
// overlap as they do on a real one: each has a timer of its own. Run as a process of its own with the
// directory and the mount point; commands come in by standard input, and its end is the end of the mount.

import fs from "node:fs";
import { constants } from "node:os";
import { createInterface } from "node:readline";
import { type Decoded, decode, encode, type Field, sizeOf } from "../../src/binary/struct.ts";
import {
  ATTR,
  ATTR_OUT,
  ATTR_OUT_ATTR_OFFSET,
  ATTR_SIZE,
  ENTRY_ATTR_OFFSET,
  ENTRY_OUT,
  ENTRY_OUT_SIZE,
  FUSE_MIN_READ_BUFFER,
  IN_HEADER_SIZE,
  OPEN_OUT,
  OUT_HEADER,
  OUT_HEADER_SIZE,
  READ_IN,
  REQUEST,
  SETATTR_IN,
  SETATTR_VALID,
  STATFS_OUT,
  WRITE_IN,
  WRITE_OUT,
  WRITE_OUT_SIZE,
} from "../../src/fuse/abi.ts";
import { mountFuse, unmountFuse } from "../../src/fuse/fusermount.ts";
import { negotiate } from "../../src/fuse/session.ts";
import { OPCODE } from "./fuse-opcodes.ts";
import {
  SLOW_FILES_READY,
  type SlowCalls,
  type SlowFilesCommand,
  type SlowFilesReport,
} from "./slow-files-protocol.ts";

const { EIO, ENODEV, ENOENT, ENOSYS } = constants.errno;
const ROOT = 1;
const FIRST_FILE = 2;

/** A request, in a buffer of its own: replies come in any order. */
class SlowRequest {
  readonly #bytes: Buffer;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get opcode(): number {
    return this.#bytes.readUInt32LE(REQUEST.opcode);
  }

  get nodeid(): number {
    return Number(this.#bytes.readBigUInt64LE(REQUEST.nodeid));
  }

  get unique(): bigint {
    return this.#bytes.readBigUInt64LE(REQUEST.unique);
  }

  arguments<const T extends readonly Field[]>(fields: T): Decoded<T> {
    return decode(fields, this.#bytes, "le", IN_HEADER_SIZE);
  }

  get name(): string {
    return this.#bytes.toString("utf8", IN_HEADER_SIZE, this.#bytes.length - 1);
  }

  get written(): Buffer {
    return this.#bytes.subarray(IN_HEADER_SIZE + sizeOf(WRITE_IN));
  }
}

/** A part of a file. */
interface FileRange {
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

interface SlowFile {
  readonly name: string;
  readonly fd: number;
}

class SlowFiles {
  readonly #fuse: number;
  readonly #files: readonly SlowFile[];
  #delay: { ms: number; calls: SlowCalls } = { ms: 0, calls: "reads" };
  #frozen: SlowCalls | undefined;
  #hold: FileRange | undefined;
  #watch: FileRange | undefined;
  #held: (() => void)[] = [];
  #underWay = 0;
  #reads = 0;
  #watched = 0;
  #mostAtOnce = 0;

  constructor(fuse: number, directory: string) {
    this.#fuse = fuse;
    this.#files = fs.readdirSync(directory).map((name) => {
      return { name, fd: fs.openSync(`${directory}/${name}`, "r+") };
    });
  }

  command(command: SlowFilesCommand): void {
    if (command.kind === "delay") this.#delay = command;
    else if (command.kind === "freeze") this.#frozen = command.calls;
    else if (command.kind === "hold") this.#hold = command;
    else if (command.kind === "watch") this.#watch = command;
    else if (command.kind === "release") {
      this.#hold = undefined;
      this.#frozen = undefined;
      for (const answer of this.#held.splice(0)) answer();
    } else if (command.kind === "forget") {
      this.#reads = 0;
      this.#watched = 0;
      this.#mostAtOnce = this.#underWay;
    } else {
      const report: SlowFilesReport = {
        reads: this.#reads,
        mostAtOnce: this.#mostAtOnce,
        watched: this.#watched,
        held: this.#held.length,
      };
      fs.writeSync(1, `${JSON.stringify(report)}\n`);
    }
  }

  answer(request: SlowRequest): void {
    const { opcode } = request;
    if (opcode === OPCODE.forget || opcode === OPCODE.batchForget || opcode === OPCODE.interrupt) {
      return;
    }
    if (opcode === OPCODE.read) this.#read(request);
    else this.#late(callsOf(opcode), false, () => this.#answerOther(request));
  }

  #answerOther(request: SlowRequest): void {
    try {
      const payload = this.#payload(request);
      if (typeof payload === "number") this.#reply(request, payload);
      else this.#reply(request, 0, payload);
    } catch (error) {
      const errno = error instanceof Error && "errno" in error ? Number(error.errno) : -EIO;
      this.#reply(request, errno);
    }
  }

  /** What a request is answered with, or a negative errno. */
  #payload(request: SlowRequest): Buffer | number {
    switch (request.opcode) {
      case OPCODE.lookup: {
        const index = this.#files.findIndex(({ name }) => name === request.name);
        return index < 0 ? -ENOENT : this.#entry(FIRST_FILE + index);
      }
      case OPCODE.getattr:
        return this.#attributes(request.nodeid);
      case OPCODE.setattr: {
        const { valid, size } = request.arguments(SETATTR_IN);
        if ((valid & SETATTR_VALID.size) !== 0) {
          fs.ftruncateSync(this.#file(request.nodeid).fd, Number(size));
        }
        return this.#attributes(request.nodeid);
      }
      case OPCODE.open:
      case OPCODE.opendir:
        return Buffer.alloc(sizeOf(OPEN_OUT));
      case OPCODE.write:
        return this.#write(request);
      case OPCODE.statfs:
        return Buffer.alloc(sizeOf(STATFS_OUT));
      case OPCODE.fsync:
      case OPCODE.flush:
      case OPCODE.release:
      case OPCODE.releasedir:
      case OPCODE.syncfs:
        return 0;
      default:
        return -ENOSYS;
    }
  }

  #file(nodeid: number): SlowFile {
    const file = this.#files[nodeid - FIRST_FILE];
    if (file === undefined) throw new Error(`no file ${nodeid}`);
    return file;
  }

  #write(request: SlowRequest): Buffer {
    const { offset } = request.arguments(WRITE_IN);
    const { written } = request;
    fs.writeSync(this.#file(request.nodeid).fd, written, 0, written.length, Number(offset));
    const reply = Buffer.alloc(WRITE_OUT_SIZE);
    encode(WRITE_OUT, { size: written.length }, reply, "le");
    return reply;
  }

  /** Answers when the medium has time for it. */
  #late(calls: SlowCalls | undefined, isHeld: boolean, answer: () => void): void {
    const { ms, calls: delayed } = this.#delay;
    if (isHeld || isAmong(calls, this.#frozen)) this.#held.push(answer);
    else if (ms > 0 && isAmong(calls, delayed)) setTimeout(answer, ms);
    else answer();
  }

  #read(request: SlowRequest): void {
    const { name, fd } = this.#file(request.nodeid);
    const { offset, size } = request.arguments(READ_IN);
    const start = Number(offset);
    this.#reads++;
    this.#underWay++;
    this.#mostAtOnce = Math.max(this.#mostAtOnce, this.#underWay);
    const answer = (): void => {
      const bytes = Buffer.alloc(size);
      const count = fs.readSync(fd, bytes, 0, size, start);
      this.#underWay--;
      this.#reply(request, 0, bytes.subarray(0, count));
    };
    const range = { name, start, end: start + size };
    if (overlaps(range, this.#watch)) this.#watched++;
    this.#late("reads", overlaps(range, this.#hold), answer);
  }

  #entry(nodeid: number): Buffer {
    const reply = Buffer.alloc(ENTRY_OUT_SIZE);
    encode(ENTRY_OUT, { nodeid }, reply, "le");
    this.#putAttributes(nodeid, reply, ENTRY_ATTR_OFFSET);
    return reply;
  }

  #attributes(nodeid: number): Buffer {
    const reply = Buffer.alloc(ATTR_OUT_ATTR_OFFSET + ATTR_SIZE);
    encode(ATTR_OUT, {}, reply, "le");
    this.#putAttributes(nodeid, reply, ATTR_OUT_ATTR_OFFSET);
    return reply;
  }

  #putAttributes(nodeid: number, reply: Buffer, at: number): void {
    const stats =
      nodeid === ROOT
        ? { mode: 0o040755, size: 0, blocks: 0 }
        : fs.fstatSync(this.#file(nodeid).fd);
    const { mode, size, blocks } = stats;
    encode(ATTR, { ino: nodeid, size, blocks, mode, nlink: 1, blksize: 4096 }, reply, "le", at);
  }

  #reply({ unique }: SlowRequest, error: number, payload: Buffer = Buffer.alloc(0)): void {
    const reply = Buffer.alloc(OUT_HEADER_SIZE + payload.length);
    encode(OUT_HEADER, { len: reply.length, error, unique }, reply, "le");
    payload.copy(reply, OUT_HEADER_SIZE);
    try {
      fs.writeSync(this.#fuse, reply);
    } catch (cause) {
      // Whoever asked has been killed, or the mount is gone.
      const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
      if (code !== "ENOENT" && code !== "ENODEV") throw cause;
    }
  }
}

function overlaps(one: FileRange, other: FileRange | undefined): boolean {
  return other?.name === one.name && one.start < other.end && one.end > other.start;
}

/** What an operation is to the medium; undefined: nothing that could take long. */
function callsOf(opcode: number): SlowCalls | undefined {
  switch (opcode) {
    case OPCODE.write:
    case OPCODE.fsync:
    case OPCODE.setattr:
      return "changes";
    case OPCODE.getattr:
    case OPCODE.lookup:
      return "all";
    default:
      return undefined;
  }
}

function isAmong(calls: SlowCalls | undefined, slow: SlowCalls | undefined): boolean {
  return calls !== undefined && (slow === "all" || slow === calls);
}

/** Reads requests until the mount is gone. */
function serve(fuse: number, files: SlowFiles, bufferSize: number): void {
  const buffer = Buffer.alloc(bufferSize);
  const next = (): void =>
    fs.read(fuse, buffer, 0, buffer.length, null, (error, length) => {
      if (error?.errno === -ENODEV) process.exit(0);
      // ENOENT: whoever asked has been interrupted. It is no number of fs.read's own.
      if (error === null) files.answer(new SlowRequest(Buffer.from(buffer.subarray(0, length))));
      next();
    });
  next();
}

const [directory = "", mountPoint = ""] = process.argv.slice(2);
const options = ["rw", "nosuid", "nodev", "subtype=slowfiles", "fsname=slowfiles", "allow_other"];
const fuse = mountFuse(mountPoint, options);
const { dataMax } = negotiate(fuse);
const files = new SlowFiles(fuse, directory);
serve(fuse, files, Math.max(FUSE_MIN_READ_BUFFER, dataMax + 4096));
const commands = createInterface({ input: process.stdin });
commands.on("line", (line) => {
  const command: SlowFilesCommand = JSON.parse(line);
  files.command(command);
});
commands.on("close", () => {
  files.command({ kind: "release" });
  unmountFuse(mountPoint, { lazy: true });
});
fs.writeSync(1, `${SLOW_FILES_READY}\n`);
