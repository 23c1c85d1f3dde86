/** Standard input and error of the daemon: neither may keep what started it. */

import fs from "node:fs";
import { StorageError } from "../errors.ts";
import { openReason } from "../storage/open-reason.ts";
import { nodeErrorCode } from "../syscalls/errno-names.ts";
import { dup2 } from "../syscalls/libc.ts";
import type { OpenDevices } from "./devices.ts";

const STDIN = 0;
const STDERR = 2;

/** Read from nowhere. */
export function detachInput(): void {
  replace(STDIN, fs.openSync("/dev/null", "r"));
}

/**
 * Append what is written to standard error, by all threads, to a file.
 *
 * @throws {StorageError} it cannot be written, or is one of the images
 */
export function redirectMessages(path: string, { devices }: OpenDevices): void {
  let fd: number;
  try {
    fd = fs.openSync(path, "a", 0o600);
  } catch (cause) {
    const code = nodeErrorCode(cause);
    const why = code === "ENOENT" ? "there is no such directory" : openReason(path, code, cause);
    throw new StorageError(code, path, `the log cannot be written: ${why}`, { cause });
  }
  const files = devices.flatMap(({ layers }) =>
    layers.flatMap((layer) => [layer.file, layer.dataFile]),
  );
  if (files.some((file) => file !== undefined && isSameFile(file.fd, fd))) {
    fs.closeSync(fd);
    throw new StorageError("EINVAL", path, "cannot be the log: it is one of the images");
  }
  replace(STDERR, fd);
}

function isSameFile(one: number, other: number): boolean {
  const [first, second] = [fs.fstatSync(one), fs.fstatSync(other)];
  return first.dev === second.dev && first.ino === second.ino;
}

function replace(descriptor: number, fd: number): void {
  dup2(fd, descriptor);
  fs.closeSync(fd);
}
