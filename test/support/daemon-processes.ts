// Finds the processes that one mount command left running, by a mark in their environment.

import { randomUUID } from "node:crypto";
import { readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs";

/** Environment variable that marks all processes of one mount. */
export const MARK = "TSIMGFS_TEST_MARK";

export function newMark(): string {
  return randomUUID();
}

function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, "latin1");
  } catch {
    return ""; // The process ended meanwhile.
  }
}

/** True unless the process is gone or only waits for its parent to collect it. */
function isRunning(pid: number): boolean {
  const state = /^State:\s+(\S)/m.exec(readOrEmpty(`/proc/${pid}/status`))?.[1];
  return state !== undefined && state !== "Z" && state !== "X";
}

/** Ids of the running processes that carry the mark. */
export function markedProcesses(mark: string): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => readOrEmpty(`/proc/${pid}/environ`).split("\0").includes(`${MARK}=${mark}`))
    .filter(isRunning);
}

/** True for a process that runs Node: the daemon itself, not a fusermount3 that it called. */
export function runsNode(pid: number): boolean {
  try {
    return readlinkSync(`/proc/${pid}/exe`) === realpathSync(process.execPath);
  } catch {
    return false;
  }
}

/** Resident memory of a process, bytes. */
export function residentBytes(pid: number): number {
  const kilobytes = /^VmRSS:\s+(\d+) kB/m.exec(readOrEmpty(`/proc/${pid}/status`))?.[1];
  return Number(kilobytes ?? 0) * 1024;
}
