/**
 * A mount through libfuse 2. libfuse has threads of its own that read /dev/fuse; each waits while the main
 * thread answers its request. So the main thread must not touch the mount, nor wait for somebody who does.
 */

import fs from "node:fs";
import { TsimgfsError } from "../../errors.ts";
import { Heartbeat } from "../../threads/heartbeat.ts";
import { writeLine } from "../../trace.ts";
import { explainMountFailure, unmountWhileServing } from "../fusermount.ts";
import type { Server } from "../opcodes.ts";
import { QueuePoll } from "../queue-poll.ts";
import { captureStandardError } from "./captured-stderr.ts";
import {
  FUSE_NATIVE,
  type FuseClass,
  type FuseInstance,
  type SignalWithBuffer,
} from "./fuse-native.ts";
import { NativeOperations } from "./operations.ts";

/** How often is looked whether the mount is gone: libfuse tells nobody. */
const POLL_MS = 50;
const FUSE_DEVICE = "/dev/fuse";
/** fuse-native copies what it is given to arrays of this size, and cuts off what is longer. */
const ARGUMENT_MAX = 1024;

/**
 * Options for libfuse: writes of more than a page, and O_TRUNC that leaves the size alone, as the other
 * transport negotiates. The page cache is for all files or for none: it must not be used for partitions,
 * which are parts of another file, nor for statistics. And the kernel asks for attributes and names each
 * time, since it cannot be told of changes.
 */
const LIBFUSE_OPTIONS = [
  "big_writes",
  "atomic_o_trunc",
  "direct_io",
  "attr_timeout=0",
  "entry_timeout=0",
];

export interface NativeMountOptions {
  /** A directory: absolute, without symbolic links. */
  readonly mountpoint: string;
  /** Of fusermount, commas in values escaped. */
  readonly options: readonly string[];
  /** Of `createHeartbeat`: of this thread, which has one as long as the mount lasts. */
  readonly heartbeat: SharedArrayBuffer;
}

export class NativeMount {
  readonly #fuse: FuseInstance;
  readonly #fd: number;
  readonly #heartbeat: Heartbeat;
  #timer: NodeJS.Timeout | undefined;
  readonly #ended: Promise<void>;

  private constructor(
    fuse: FuseInstance,
    { fd, heartbeat }: { fd: number; heartbeat: Heartbeat },
    failed: Promise<never>,
  ) {
    this.#fuse = fuse;
    this.#fd = fd;
    this.#heartbeat = heartbeat;
    this.#ended = Promise.race([this.#gone(), failed]);
    // Whoever waits for the end handles it.
    this.#ended.catch(() => undefined);
  }

  /**
   * Mount, and serve. Resolves when the kernel has been answered first.
   *
   * @throws {TsimgfsError} with what libfuse said; nothing is mounted
   */
  static async make(
    Fuse: FuseClass,
    server: Server,
    { mountpoint, options, heartbeat: memory }: NativeMountOptions,
  ): Promise<NativeMount> {
    const argument = `-o${[...options, ...LIBFUSE_OPTIONS].join(",")}`;
    for (const text of [mountpoint, argument]) {
      if (Buffer.byteLength(text) >= ARGUMENT_MAX) {
        const reason = `"${text.slice(0, 40)}..." is too long for fuse-native, which takes ${ARGUMENT_MAX - 1} bytes`;
        throw new TsimgfsError("EINVAL", FUSE_NATIVE, reason);
      }
    }
    // Its own way to unmount takes away whatever is mounted there by then.
    Fuse.unmount = (_mountpoint, done) => done(null);
    let fail: (error: unknown) => void = () => undefined;
    const failed = new Promise<never>((_, reject) => {
      fail = reject;
    });
    failed.catch(() => undefined);
    const heartbeat = new Heartbeat(memory);
    const operations = new NativeOperations(server, heartbeat, fail);
    const fuse = new Fuse(mountpoint, operations, { timeout: false });
    fuse._fuseOptions = () => argument;
    fuse._op_getxattr = (signal: SignalWithBuffer, path: string, name: string, room: Buffer) =>
      operations.getXattr(signal, path, name, room);
    fuse._op_listxattr = (signal: SignalWithBuffer, path: string, room: Buffer) =>
      operations.listXattrs(signal, path, room);
    const before = new Set(fuseDescriptors());
    await mount(fuse, mountpoint);
    const fd = fuseDescriptors().find((descriptor) => !before.has(descriptor));
    if (fd === undefined) {
      await letGo(fuse);
      throw new TsimgfsError("EIO", mountpoint, "was unmounted before it was ready");
    }
    try {
      // fuse-native calls back before INIT is answered, after which the kernel sets what it was told then.
      await fs.promises.stat(mountpoint);
    } catch (error) {
      await letGo(fuse);
      await unmountWhileServing(mountpoint, { lazy: true });
      throw error;
    }
    return new NativeMount(fuse, { fd, heartbeat }, failed);
  }

  /** Resolves when the mount is gone and nobody has a file of it open; rejects when it cannot be served. */
  ended(): Promise<void> {
    return this.#ended;
  }

  /** Whether the kernel has the file system. */
  isConnected(): boolean {
    return isFuseDescriptor(this.#fd) && !new QueuePoll(this.#fd).hasEnded();
  }

  #gone(): Promise<void> {
    return new Promise((resolve) => {
      this.#timer = setInterval(() => {
        this.#heartbeat.beat();
        // libfuse closes it when its last thread has ended.
        if (isFuseDescriptor(this.#fd)) return;
        clearInterval(this.#timer);
        void letGo(this.#fuse).then(resolve);
      }, POLL_MS);
    });
  }
}

async function mount(fuse: FuseInstance, mountpoint: string): Promise<void> {
  const captured = captureStandardError();
  let error: Error | null | undefined;
  let said: string;
  try {
    error = await new Promise((resolve) => fuse.mount(resolve));
  } finally {
    said = captured.end();
  }
  if (error === null || error === undefined) {
    if (said !== "") writeLine(said.trimEnd());
    return;
  }
  const reason = said === "" ? explain(error.message) : explainMountFailure(said, mountpoint);
  throw new TsimgfsError("EIO", mountpoint, reason, { cause: error });
}

/** What has been mounted keeps the event loop until then, also when the mount is gone. */
function letGo(fuse: FuseInstance): Promise<void> {
  return new Promise((resolve) => fuse.unmount(() => resolve()));
}

/** What fuse-native says before libfuse is asked. */
function explain(message: string): string {
  if (message === "Mountpoint in use") {
    return "is the root of another file system, over which fuse-native does not mount; mount on a directory in it";
  }
  return `fuse-native: ${message}`;
}

/** The descriptors of /dev/fuse that this process has. */
function fuseDescriptors(): number[] {
  return fs.readdirSync("/proc/self/fd").map(Number).filter(isFuseDescriptor);
}

function isFuseDescriptor(fd: number): boolean {
  try {
    return fs.readlinkSync(`/proc/self/fd/${fd}`) === FUSE_DEVICE;
  } catch {
    return false;
  }
}
