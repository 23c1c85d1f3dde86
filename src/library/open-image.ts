/** Images for programs: the synchronous engine behind the published interface. */

import { isUint8Array } from "node:util/types";
import { BlockStatus } from "../block/block-status.ts";
import { countDisk } from "../block/guest-allocation.ts";
import { closeChain, openChain } from "../block/open-chain.ts";
import { OpenDisk } from "../block/open-disk.ts";
import { BACKING_POLICIES } from "../block/referenced-file.ts";
import type { WritePolicy } from "../block/write-policy.ts";
import { type Errno, TsimgfsError } from "../errors.ts";
import { FORMAT_NAMES, NO_OFFSET } from "../formats/driver.ts";
import { countAllocation, countDataFile } from "../formats/image-allocation.ts";
import { LocalFile } from "../storage/local-file.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type {
  Image,
  ImageBlockStatus,
  ImageFormat,
  ImageStats,
  OpenImageOptions,
} from "./image.ts";
import { checkArguments, requireNumber } from "./open-arguments.ts";

const WRITING: WritePolicy = {
  copyOnRead: false,
  detectZeroes: "off",
  discard: "unmap",
  growable: false,
};

/**
 * Open an image with its data file and its backing files, and lock them as QEMU does.
 *
 * @throws {TsimgfsError} EAGAIN: somebody else uses it; ENOENT, EACCES, …: a file cannot be opened, or
 *   no passphrase opens it; EINVAL,
 *   ENOTSUP: it is no valid image, or has a feature that is not known. Nothing is left open
 * @throws {TypeError} `path` is no string, or has a NUL character; there is no such option, or its value is of
 *   another type
 */
export function openImage(path: string, options: OpenImageOptions = {}): Image {
  checkArguments(path, options);
  const { format, backingPolicy, secrets, backingSecrets, readOnly = true } = options;
  requireOneOf(path, "format", format, FORMAT_NAMES);
  requireOneOf(path, "backingPolicy", backingPolicy, BACKING_POLICIES);
  const writing = readOnly ? undefined : { policy: WRITING, threads: 1 };
  const passphrases = { secrets, backingSecrets };
  const how = { format, backingPolicy, ...passphrases, forceShare: false, writing };
  const chain = openChain(path, how);
  try {
    return new DiskImage(new OpenDisk(path, chain));
  } catch (error) {
    closeChain(chain);
    throw error;
  }
}

class DiskImage implements Image {
  readonly path: string;
  readonly format: ImageFormat;
  readonly virtualSize: number;
  readonly clusterSize: number;
  readonly readOnly: boolean;
  readonly warnings: readonly string[];
  readonly #open: OpenDisk;
  readonly #status = new BlockStatus();
  #isClosed = false;

  constructor(open: OpenDisk) {
    const { image } = open.disk.chain;
    this.path = open.path;
    this.format = image.format;
    this.virtualSize = image.virtualSize;
    this.clusterSize = image.clusterSize;
    this.readOnly = !open.disk.isWritable;
    this.warnings = open.chain.warnings;
    this.#open = open;
  }

  read<T extends Uint8Array>(target: T, offset: number): T {
    this.#requireOpen();
    const memory = memoryOf(target);
    this.#requireRange(offset, memory.length);
    this.#open.disk.read(offset, memory.length, memory, 0);
    return target;
  }

  write(source: Uint8Array, offset: number): void {
    this.#requireWritable();
    const memory = memoryOf(source);
    this.#requireRange(offset, memory.length);
    this.#open.disk.write(offset, memory.length, memory, 0);
  }

  writeZeroes(offset: number, length: number): void {
    this.#requireWritable();
    this.#requireRange(offset, length);
    this.#open.disk.writeZeroes(offset, length, { unmap: true });
  }

  blockStatus(offset: number, maxLength = this.virtualSize - offset): ImageBlockStatus {
    this.#requireOpen();
    this.#requireRange(offset, 1);
    requireNumber("maxLength", maxLength);
    if (!Number.isSafeInteger(maxLength) || maxLength <= 0) {
      throw this.#refusal("EINVAL", `maxLength ${maxLength} is not a number of bytes above 0`);
    }
    const status = this.#status;
    this.#open.disk.statusAt(offset, Math.min(maxLength, this.virtualSize - offset), status);
    const { length, depth, present, zero, data, compressed, hostOffset } = status;
    return {
      ...{ length, depth, present, zero, data, compressed },
      hostOffset: hostOffset === NO_OFFSET ? undefined : hostOffset,
    };
  }

  stats(): ImageStats {
    this.#requireOpen();
    const { chain, disk } = this.#open;
    const [top] = chain.layers;
    if (top === undefined) throw new RangeError("a chain has at least one image");
    const { file, dataFile, layout } = top;
    return {
      file: countAllocation(layout, new LocalFile(file), chain.writing?.format),
      dataFile: dataFile && countDataFile(new LocalFile(dataFile)),
      ...countDisk(disk, Number.POSITIVE_INFINITY),
    };
  }

  flush(): void {
    this.#requireOpen();
    const { disk } = this.#open;
    disk.flush();
    // What was freed before is given back to the host.
    if (disk.hasLateWork()) disk.maintain();
  }

  close(): void {
    this.#isClosed = true;
    this.#open.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #requireOpen(): void {
    if (this.#isClosed) throw this.#refusal("EBADF", "is closed");
  }

  #requireWritable(): void {
    this.#requireOpen();
    if (this.readOnly) throw this.#refusal("EROFS", "is open for reading only");
  }

  #requireRange(offset: number, length: number): void {
    requireNumber("offset", offset);
    requireNumber("length", length);
    const isOnDisk = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
    if (isOnDisk && offset >= 0 && length >= 0 && offset + length <= this.virtualSize) return;
    const reason = `${length} bytes at ${offset} are not on the disk of ${this.virtualSize} bytes`;
    throw this.#refusal("EINVAL", reason);
  }

  #refusal(code: Errno, reason: string): TsimgfsError {
    return new TsimgfsError(code, this.path, reason);
  }
}

/** Not every program is compiled with types: what is no policy must not count as one. */
function requireOneOf(
  path: string,
  option: string,
  value: string | undefined,
  all: readonly string[],
): void {
  if (value === undefined || all.includes(value)) return;
  throw new TsimgfsError("EINVAL", path, `${option} ${value} is not one of ${all.join(", ")}`);
}

/** What system calls need of somebody else's bytes. They would write to any address. */
function memoryOf(bytes: Uint8Array): NativeBuffer {
  if (!isUint8Array(bytes)) throw new TypeError("bytes are a Uint8Array or a Buffer");
  return new NativeBuffer(bytes.buffer, bytes.byteOffset, bytes.length);
}
