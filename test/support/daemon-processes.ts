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

/**
 * True unless the process is gone or only waits for its parent to collect it. While any thread of a killed one
 * still ends, its files are open, and locked.
 */
function isRunning(pid: number): boolean {
  let threads: string[];
  try {
    threads = readdirSync(`/proc/${pid}/task`);
  } catch {
    return false;
  }
  return threads.some((thread) => {
    const status = readOrEmpty(`/proc/${pid}/task/${thread}/status`);
    const state = /^State:\s+(\S)/m.exec(status)?.[1];
    return state !== undefined && state !== "Z" && state !== "X";
  });
}

/** Processes that were found by a mark: one that ends has no environment any more. */
const found = new Map<string, Set<number>>();

/** Ids of the running processes that carry the mark. */
export function markedProcesses(mark: string): number[] {
  const pids = found.get(mark) ?? new Set();
  found.set(mark, pids);
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const environment = readOrEmpty(`/proc/${name}/environ`).split("\0");
    if (environment.includes(`${MARK}=${mark}`)) pids.add(Number(name));
  }
  for (const pid of pids) if (!isRunning(pid)) pids.delete(pid);
  return [...pids];
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
