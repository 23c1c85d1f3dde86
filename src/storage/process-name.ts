/** What a process is called, for messages. */

import fs from "node:fs";
import { basename } from "node:path";

/** The kernel keeps so many bytes of a name. */
const COMM_MAX = 15;

/**
 * `qemu-storage-daemon (pid 123)`.
 *
 * @throws the process has ended, or /proc does not show it to us
 */
export function processName(pid: number | string): string {
  return `${programOf(pid)} (pid ${pid})`;
}

function programOf(pid: number | string): string {
  const short = fs.readFileSync(`/proc/${pid}/comm`, "utf8").trimEnd();
  if (Buffer.byteLength(short) < COMM_MAX) return short;
  const [command = ""] = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  // The title of a daemon of ours has its images and its mount point, too.
  const [ours] = /^tsimgfs [a-z]+/.exec(command) ?? [];
  if (ours !== undefined) return ours;
  const name = basename(command);
  return name.startsWith(short) ? name : short;
}
