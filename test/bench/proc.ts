/** What /proc says about processes and CPUs. */

import { readdir, readFile, readlink } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

/** True while the process is there and not a zombie. */
export async function isAlive(pid: number): Promise<boolean> {
  const status = await readText(`/proc/${pid}/status`);
  return /^State:\s+[^ZX]/m.test(status);
}

/** VmRSS, MiB. */
export async function residentMib(pid: number): Promise<number> {
  const status = await readText(`/proc/${pid}/status`);
  const kib = /^VmRSS:\s+(\d+) kB/m.exec(status)?.[1];
  if (kib === undefined) throw new Error(`process ${pid} has no VmRSS`);
  return Number(kib) / 1024;
}

/** Ticks of /proc in a second: USER_HZ, 100 on all machines of interest. */
const TICKS = 100;

/** The processor time that all threads of a process have used, their system calls included, seconds. */
export async function processorSeconds(pid: number): Promise<number> {
  const text = await readText(`/proc/${pid}/stat`);
  // After the name in parentheses: state is field 3, utime and stime are 14 and 15.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const ticks = Number(fields[11]) + Number(fields[12]);
  if (!Number.isFinite(ticks)) throw new Error(`process ${pid} has no processor time`);
  return ticks / TICKS;
}

/** The processes that hold /dev/fuse open and carry `mark` in their environment or command line. */
export async function fuseServersMarked(mark: string): Promise<number[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number);
  const found: number[] = [];
  for (const pid of pids) {
    const text =
      (await readText(`/proc/${pid}/environ`)) + (await readText(`/proc/${pid}/cmdline`));
    if (text.includes(mark) && (await holdsFuseDevice(pid))) found.push(pid);
  }
  return found;
}

/** How long a process may take to end before the next, harder step. */
const END_TIMEOUT_MS = 5_000;

/**
 * End a process that we started: SIGTERM, and SIGKILL if that does not help. One that has ended is
 * no error.
 */
export async function endProcess(pid: number): Promise<void> {
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    if (!(await isAlive(pid))) return;
    try {
      process.kill(pid, signal);
    } catch {
      return; // ESRCH: it has ended since.
    }
    for (let waitedMs = 0; waitedMs < END_TIMEOUT_MS && (await isAlive(pid)); waitedMs += 10)
      await sleep(10);
  }
}

/** The CPUs that we may run on, each by its number. */
export async function allowedCpus(): Promise<number[]> {
  const list = /^Cpus_allowed_list:\s+(\S+)/m.exec(await readText("/proc/self/status"))?.[1] ?? "0";
  return list.split(",").flatMap((range) => {
    const [first = 0, last = first] = range.split("-").map(Number);
    return Array.from({ length: last - first + 1 }, (_, index) => first + index);
  });
}

/**
 * How busy the CPUs are during `sampleMs`, 0 to 1, time stolen by other virtual machines included.
 */
export async function busyShare(sampleMs: number): Promise<number> {
  const before = await cpuTimes();
  await sleep(sampleMs);
  const after = await cpuTimes();
  const total = after.total - before.total;
  return total > 0 ? 1 - (after.idle - before.idle) / total : 0;
}

/**
 * First line of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice; guest
 * is part of user.
 */
async function cpuTimes(): Promise<{ total: number; idle: number }> {
  const [line = ""] = (await readText("/proc/stat")).split("\n");
  const times = line.trim().split(/\s+/).slice(1, 9).map(Number);
  const [, , , idle = 0, iowait = 0] = times;
  return { total: times.reduce((sum, time) => sum + time, 0), idle: idle + iowait };
}

async function holdsFuseDevice(pid: number): Promise<boolean> {
  try {
    const fds = await readdir(`/proc/${pid}/fd`);
    const links = await Promise.all(
      fds.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")),
    );
    return links.includes("/dev/fuse");
  } catch {
    return false;
  }
}

/** Empty if the file cannot be read: processes come and go, and some are not ours. */
async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, "latin1");
  } catch {
    return "";
  }
}
