/**
 * Mounting and unmounting through fusermount3, which may do it for ordinary users. It opens /dev/fuse,
 * mounts, and passes the descriptor over a socket that _FUSE_COMMFD names. Source: fusermount3(1).
 */

import { type SpawnSyncReturns, type StdioOptions, spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import { constants } from "node:os";
import { TsimgfsError } from "../errors.ts";
import { OWN_SESSION } from "../own-session.ts";
import { searchPath } from "../search-path.ts";
import { errnoName, nodeErrorCode } from "../syscalls/errno-names.ts";
import { errno, recvmsg, socketpair } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { createTrace } from "../trace.ts";

const PROGRAM = "fusermount3";
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0o2000000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** The descriptor that fusermount3 finds its end of the socket at. */
const CHILD_FD = 3;

/** `struct msghdr`, `iovec` and `cmsghdr` with 64-bit pointers; offsets in one block of memory. */
const MESSAGE = {
  iov: 16,
  iovLength: 24,
  control: 32,
  controlLength: 40,
  size: 56,
} as const;
const IOVEC_AT = 64;
const DATA_AT = 80;
const CONTROL_AT = 96;
/** Header of 16 bytes, then the descriptor. */
const CONTROL_SIZE = 64;
const CONTROL_FD_AT = CONTROL_AT + 16;

/**
 * Mount, and get the descriptor that requests come from.
 *
 * @param options of fusermount3, commas in values escaped
 * @throws {TsimgfsError} with what fusermount3 said
 */
export function mountFuse(mountpoint: string, options: readonly string[]): number {
  const pair = NativeBuffer.allocate(8);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.address) < 0) {
    throw new TsimgfsError("EIO", mountpoint, `socketpair failed: ${errnoName(errno())}`);
  }
  const ours = pair.view.getInt32(0, true);
  const theirs = pair.view.getInt32(4, true);
  try {
    createTrace("run")("%s -o %s -- %s", PROGRAM, options.join(","), mountpoint);
    const result = spawnSync(PROGRAM, ["-o", options.join(","), "--", mountpoint], {
      ...OWN_SESSION,
      stdio: ["ignore", "ignore", "pipe", theirs],
      env: { ...environment(), _FUSE_COMMFD: String(CHILD_FD) },
      encoding: "utf8",
    });
    requireSuccess(result, mountpoint);
    return receiveDescriptor(ours, mountpoint);
  } finally {
    fs.closeSync(ours);
    fs.closeSync(theirs);
  }
}

/**
 * Unmount. `lazy`: the tree disappears at once, and what is open goes on until it is closed.
 *
 * @throws {TsimgfsError} EBUSY, or what fusermount3 said
 */
export function unmountFuse(mountpoint: string, { lazy }: { lazy: boolean }): void {
  const result = spawnSync(PROGRAM, unmountArguments(mountpoint, { lazy }), {
    ...OWN_SESSION,
    stdio: ["ignore", "ignore", "pipe"],
    env: environment(),
    encoding: "utf8",
  });
  requireSuccess(result, mountpoint);
}

/**
 * As `unmountFuse`, while this thread goes on: it may be the one that answers what the kernel asks before it
 * unmounts.
 */
export async function unmountWhileServing(
  mountpoint: string,
  { lazy }: { lazy: boolean },
): Promise<void> {
  const child = spawn(PROGRAM, unmountArguments(mountpoint, { lazy }), {
    ...OWN_SESSION,
    stdio: ["ignore", "ignore", "pipe"],
    env: environment(),
  });
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const result = await new Promise<Outcome>((done) => {
    child.once("error", (error) => done({ error, status: null, stderr }));
    child.once("close", (status) => done({ status, stderr }));
  });
  requireSuccess(result, mountpoint);
}

/**
 * Make sure that what others have mounted, as libfuse does for root, can be unmounted.
 *
 * @throws {TsimgfsError} fusermount3 is not there
 */
export function requireFusermount(): void {
  const stdio: StdioOptions = ["ignore", "ignore", "pipe"];
  const options = { stdio, encoding: "utf8", env: environment() } as const;
  requireSuccess(spawnSync(PROGRAM, ["--version"], options), PROGRAM);
}

/** Tells of the call, too. */
function unmountArguments(mountpoint: string, { lazy }: { lazy: boolean }): string[] {
  createTrace("run")("%s -u%s -- %s", PROGRAM, lazy ? " -z" : "", mountpoint);
  return ["-u", ...(lazy ? ["-z"] : []), "--", mountpoint];
}

function environment(): NodeJS.ProcessEnv {
  return { ...process.env, PATH: searchPath() };
}

/** How fusermount3 ended. */
type Outcome = Pick<SpawnSyncReturns<string>, "error" | "status" | "stderr">;

function requireSuccess(result: Outcome, mountpoint: string): void {
  if (result.error !== undefined) {
    const code = nodeErrorCode(result.error);
    const reason =
      code === "ENOENT" ? "not found in PATH, nor in /usr/bin; install the package fuse3" : code;
    throw new TsimgfsError(code, PROGRAM, reason, { cause: result.error });
  }
  if (result.status === 0) return;
  throw new TsimgfsError(
    /busy/i.test(result.stderr) ? "EBUSY" : "EIO",
    mountpoint,
    explainMountFailure(result.stderr, mountpoint),
  );
}

/** What fusermount3, or libfuse, printed, as one reason; what can be done about the usual ones. */
export function explainMountFailure(stderr: string, mountpoint: string): string {
  const line = stderr.split("\n").find((text) => text.trim() !== "") ?? "failed";
  const said = line
    .replace(/^fuse(rmount3?)?:\s*/, "")
    .replace(`${mountpoint}: `, "")
    .trim();
  if (/user_allow_other/.test(said)) {
    return "allow_other needs the line user_allow_other in /etc/fuse.conf, or root";
  }
  if (/failed to open .*\/dev\/fuse: Permission denied|\/dev\/fuse.*[Pp]ermission/.test(said)) {
    return "/dev/fuse is closed to this user; as root: chmod 666 /dev/fuse";
  }
  if (/(fuse|^) ?device not found|\/dev\/fuse.*No such/.test(said)) {
    return "/dev/fuse does not exist; load the module with: modprobe fuse";
  }
  if (/no write access to mountpoint|mountpoint .* not owned by/.test(said)) {
    return "without root, a mount point must be yours: one that you may write to";
  }
  return said;
}

/** Receive the descriptor that comes with one byte of data. */
function receiveDescriptor(socket: number, mountpoint: string): number {
  const memory = NativeBuffer.allocate(CONTROL_AT + CONTROL_SIZE);
  const pointer = (at: number, address: number): void =>
    memory.view.setBigUint64(at, BigInt(address), true);
  pointer(MESSAGE.iov, memory.address + IOVEC_AT);
  pointer(MESSAGE.iovLength, 1);
  pointer(MESSAGE.control, memory.address + CONTROL_AT);
  pointer(MESSAGE.controlLength, CONTROL_SIZE);
  pointer(IOVEC_AT, memory.address + DATA_AT);
  pointer(IOVEC_AT + 8, 1);
  let count: number;
  do {
    count = recvmsg(socket, memory.address, MSG_CMSG_CLOEXEC);
  } while (count < 0 && errno() === constants.errno.EINTR);
  if (count < 0) {
    throw new TsimgfsError("EIO", mountpoint, `recvmsg failed: ${errnoName(errno())}`);
  }
  if (count !== 1 || memory.view.getBigUint64(MESSAGE.controlLength, true) === 0n) {
    throw new TsimgfsError("EIO", mountpoint, "fusermount3 passed no descriptor");
  }
  return memory.view.getInt32(CONTROL_FD_AT, true);
}
