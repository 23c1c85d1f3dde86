/** The failures that tsimgfs expects: each has an errno for FUSE replies and one line for people. */

/** Error names of errno(3) that expected failures carry. */
export type Errno =
  | "EACCES"
  | "EAGAIN"
  | "EBADF"
  | "EBUSY"
  | "EEXIST"
  | "EFBIG"
  | "EINTR"
  | "EINVAL"
  | "EIO"
  | "EISDIR"
  | "ELOOP"
  | "ENODATA"
  | "ENODEV"
  | "ENOENT"
  | "ENOLCK"
  | "ENOMEM"
  | "ENOSPC"
  | "ENOSYS"
  | "ENOTCONN"
  | "ENOTDIR"
  | "ENOTEMPTY"
  | "ENOTSUP"
  | "ENXIO"
  | "EPERM"
  | "ERANGE"
  | "EROFS"
  | "ESTALE";

/** What caused an error and where in the file it is. */
export interface ErrorSite {
  /** Byte offset in the file of the structure at fault. */
  readonly offset?: number;
  readonly cause?: unknown;
}

// Control characters, and the line and paragraph separators, of names that come from images.
// biome-ignore format: the comment below is for this line
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

/**
 * `text` as one printable line: control characters, which could move the cursor or break the
 * line, become `\xNN` or `\uNNNN`. For names that come from an image or the command line.
 */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x100
      ? `\\x${code.toString(16).padStart(2, "0")}`
      : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** Base of every expected failure. `code` is what a FUSE reply or the exit status is made from. */
export class TsimgfsError extends Error {
  override readonly name: string = "TsimgfsError";
  readonly code: Errno;
  readonly path: string;
  /** The message without the path. */
  readonly reason: string;
  /** Byte offset in `path` of the structure at fault. */
  readonly offset: number | undefined;

  constructor(code: Errno, path: string, reason: string, at: ErrorSite = {}) {
    super(printable(`${path}: ${reason}`), { cause: at.cause });
    this.code = code;
    this.path = path;
    this.reason = reason;
    this.offset = at.offset;
  }
}

/** At open: the image contradicts its specification. */
export class FormatError extends TsimgfsError {
  override readonly name = "FormatError";
  constructor(path: string, reason: string, at: ErrorSite = {}) {
    super("EINVAL", path, reason, at);
  }
}

/** At open: well formed, but a feature that we do not have. */
export class UnsupportedError extends TsimgfsError {
  override readonly name = "UnsupportedError";
  constructor(path: string, reason: string, at: ErrorSite = {}) {
    super("ENOTSUP", path, reason, at);
  }
}

/** After open: a table entry that cannot be right. */
export class CorruptionError extends TsimgfsError {
  override readonly name = "CorruptionError";
  constructor(path: string, reason: string, at: ErrorSite = {}) {
    super("EIO", path, reason, at);
  }
}

/** A system call on a file failed; the call is in the reason. */
export class StorageError extends TsimgfsError {
  override readonly name = "StorageError";
}

/** The command line asks for something that cannot be done; says what to do instead. */
export class UsageError extends TsimgfsError {
  override readonly name = "UsageError";
  constructor(subject: string, reason: string, at: ErrorSite = {}) {
    super("EINVAL", subject, reason, at);
  }
}

/** `0x1f00`: how messages write offsets. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}
