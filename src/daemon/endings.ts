/** How daemons end, for those who wait for it: when the mount is out of sight, the name of the process tells. */

import fs from "node:fs";

/** What a daemon is named, and after it its mount point. */
const TITLES = {
  /** It was told to end; perhaps somebody has a device open. */
  ending: "tsimgfs ending",
  /** The mount is gone, and the images are being closed. */
  closing: "tsimgfs closing",
  /** Not all that was written could be made durable. */
  failed: "tsimgfs failed",
} as const;
export type Ending = keyof typeof TITLES;

/** How long a daemon that could not end orderly stays to be seen so, ms. */
export const FAILURE_SHOWN_MS = 1000;

/**
 * Let others see, by the name of this process, how it ends.
 *
 * @param mountpoint of this daemon; the name of a process has room for 60 bytes of it, or more
 */
export function showEnding(ending: Ending, mountpoint: string): void {
  process.title = `${TITLES[ending]} ${mountpoint}`;
}

/** How a daemon ends; undefined: nobody has told it to, or it has ended. */
export function readEnding(pid: number): Ending | undefined {
  const title = titleOf(pid);
  if (title.startsWith(TITLES.ending)) return "ending";
  if (title.startsWith(TITLES.closing)) return "closing";
  return title.startsWith(TITLES.failed) ? "failed" : undefined;
}

/**
 * A daemon of this user's that has served this mount point, and ends.
 *
 * @param mountpoint as the daemon has it, and short: see `showEnding`
 * @returns the process; undefined: there is none
 */
export function findEnding(mountpoint: string): number | undefined {
  const titles = Object.values(TITLES).map((title) => `${title} ${mountpoint}`);
  const pid = fs
    .readdirSync("/proc")
    .find((name) => /^\d+$/.test(name) && titles.includes(titleOf(name)) && isOurs(name));
  return pid === undefined ? undefined : Number(pid);
}

/** Empty: the process has ended. */
function titleOf(pid: number | string): string {
  try {
    const [title = ""] = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0", 1);
    return title;
  } catch {
    return "";
  }
}

/** Whose a process is: anybody may name one as he likes. */
function isOurs(pid: string): boolean {
  return fs.statSync(`/proc/${pid}`, { throwIfNoEntry: false })?.uid === process.geteuid?.();
}
