/** The options of `-o`: which there are, and what each becomes. */

import { UsageError } from "../errors.ts";
import { nearestWord } from "../nearest-word.ts";

export interface MountOptions {
  /** `ro` or `rw`, whichever comes last; undefined: neither. */
  readonly readOnly: boolean | undefined;
  readonly allowOther: boolean;
  readonly nonempty: boolean;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
  /** Permission bits that are taken away. */
  readonly umask: number | undefined;
  readonly fsname: string | undefined;
  /** Bytes of the largest read request. */
  readonly maxRead: number | undefined;
  /** Read-ahead of the mount, KiB; only root can set it. */
  readonly readAheadKb: number | undefined;
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };
type Apply = (options: Mutable<MountOptions>, value: string | undefined, name: string) => void;

const MAX_READ_MIN = 4096;

function noValue(name: string, value: string | undefined): void {
  if (value !== undefined) throw new UsageError(`-o ${name}`, "takes no value");
}

/** A number, decimal unless another base is stated, in `min..max`. */
function number(
  name: string,
  value: string | undefined,
  min: number,
  max: number,
  base = 10,
): number {
  const digits = base === 8 ? /^[0-7]+$/ : /^\d+$/;
  const result =
    value !== undefined && digits.test(value) ? Number.parseInt(value, base) : Number.NaN;
  if (!(result >= min && result <= max)) {
    const kind = base === 8 ? "an octal number" : "a number";
    const range = `${min.toString(base)}..${max.toString(base)}`;
    throw new UsageError(`-o ${name}=${value ?? ""}`, `needs ${kind} in ${range}`);
  }
  return result;
}

const ID_MAX = 0xffff_fffe;

/** Options that exist only to say why there is no such thing. */
const REFUSED = ["allow_root", "subtype"];

const OPTIONS: Readonly<Record<string, Apply>> = {
  ro: (options, value, name) => {
    noValue(name, value);
    options.readOnly = true;
  },
  rw: (options, value, name) => {
    noValue(name, value);
    options.readOnly = false;
  },
  allow_other: (options, value, name) => {
    noValue(name, value);
    options.allowOther = true;
  },
  allow_root: () => {
    throw new UsageError(
      "-o allow_root",
      "the kernel has no such option, only libraries imitate it; use allow_other with uid= and umask=",
    );
  },
  nonempty: (options, value, name) => {
    noValue(name, value);
    options.nonempty = true;
  },
  uid: (options, value, name) => {
    options.uid = number(name, value, 0, ID_MAX);
  },
  gid: (options, value, name) => {
    options.gid = number(name, value, 0, ID_MAX);
  },
  umask: (options, value, name) => {
    options.umask = number(name, value, 0, 0o777, 8);
  },
  fsname: (options, value, name) => {
    if (value === undefined || value === "") throw new UsageError(`-o ${name}`, "needs a name");
    options.fsname = value;
  },
  subtype: () => {
    throw new UsageError("-o subtype", "is always tsimgfs; use fsname= to name a mount");
  },
  max_read: (options, value, name) => {
    options.maxRead = number(name, value, MAX_READ_MIN, 1024 * 1024);
  },
  read_ahead_kb: (options, value, name) => {
    options.readAheadKb = number(name, value, 0, 1024 * 1024);
  },
  // Always on, and accepted so that habits and fstab lines work.
  default_permissions: (_options, value, name) => noValue(name, value),
  nosuid: (_options, value, name) => noValue(name, value),
  nodev: (_options, value, name) => noValue(name, value),
};

/**
 * Parse the values of all `-o` options, each a list with commas; within a value `\,` is a comma and
 * `\\` a backslash.
 *
 * @throws {UsageError} unknown, refused, or with a bad value
 */
export function parseMountOptions(lists: readonly string[]): MountOptions {
  const options: Mutable<MountOptions> = {
    readOnly: undefined,
    allowOther: false,
    nonempty: false,
    uid: undefined,
    gid: undefined,
    umask: undefined,
    fsname: undefined,
    maxRead: undefined,
    readAheadKb: undefined,
  };
  for (const item of lists.flatMap(splitList)) {
    const [, name = "", value] = /^([^=]*)(?:=(.*))?$/s.exec(item) ?? [];
    const apply = Object.hasOwn(OPTIONS, name) ? OPTIONS[name] : undefined;
    if (apply === undefined) {
      const known = Object.keys(OPTIONS).filter((option) => !REFUSED.includes(option));
      const meant = nearestWord(name, known);
      const advice = meant === undefined ? "" : `did you mean ${meant}? `;
      const reason = `unknown option; ${advice}there are ${known.join(", ")}`;
      throw new UsageError(`-o ${item}`, reason);
    }
    apply(options, value, name);
  }
  return options;
}

function splitList(list: string): string[] {
  const items = list.match(/(?:\\.|[^,\\])+/gs) ?? [];
  return items.map((item) => item.replace(/\\([,\\])/g, "$1"));
}
