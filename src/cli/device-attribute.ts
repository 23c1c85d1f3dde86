/** Telling the daemon of a mount what to do with a device: by setting an extended attribute. */

import { TsimgfsError } from "../errors.ts";
import { errnoCode, errnoName } from "../syscalls/errno-names.ts";
import { errno, setxattr } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";

/**
 * Set an attribute; what it asks for is done when this returns.
 *
 * @param reasons what errors mean, by their names
 * @throws {TsimgfsError} what the daemon says
 */
export function setDeviceAttribute(
  device: string,
  name: string,
  text: string,
  reasons: Readonly<Record<string, string>>,
): void {
  const bytes = Buffer.from(text);
  const value = NativeBuffer.allocate(Math.max(bytes.length, 1));
  value.bytes.set(bytes);
  if (setxattr(device, name, value.address, bytes.length, 0) === 0) return;
  const number = errno();
  const reason = reasons[errnoName(number)] ?? GENERAL_REASONS[errnoName(number)];
  throw new TsimgfsError(errnoCode(number), device, reason ?? errnoName(number));
}

const GENERAL_REASONS: Readonly<Record<string, string>> = {
  EACCES: "permission denied",
  EPERM: "is read-only",
  EROFS: "is read-only",
};
