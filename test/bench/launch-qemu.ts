/** qemu-storage-daemon's FUSE export of an image: the server that everything is compared with. */

import { readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { performance } from "node:perf_hooks";
import { type Launched, type LaunchRequest, unmountLazily } from "./launch.ts";
import { endProcess } from "./proc.ts";
import { type CommandLine, run } from "./run-command.ts";

export async function launchQemu({
  image,
  access,
  copyOnRead = false,
  directory,
  signal,
  cleanup,
}: LaunchRequest): Promise<Launched> {
  const device = join(directory, "device.raw");
  const pidFile = join(directory, "pid");
  await writeFile(device, "");
  cleanup.defer(() => unmountLazily(device));

  // Its default for discards is to answer "done" and to leave the data.
  const node = access === "read-only" ? "read-only=on" : "read-only=off,discard=unmap";
  const writable = access === "read-only" ? "writable=off" : "writable=on";
  const command: CommandLine = [
    "qemu-storage-daemon",
    ...["--blockdev", `driver=file,node-name=file,filename=${optionValue(image.path)},${node}`],
    ...["--blockdev", `driver=${image.format},node-name=image,file=file,${node}`],
    ...(copyOnRead ? ["--blockdev", "driver=copy-on-read,node-name=copies,file=image"] : []),
    ...[
      "--export",
      `type=fuse,id=export,node-name=${copyOnRead ? "copies" : "image"},mountpoint=${optionValue(device)},${writable}`,
    ],
    ...["--daemonize", "--pidfile", pidFile],
  ];
  const started = performance.now();
  cleanup.defer(async () => {
    const pid = await readPid(pidFile);
    if (pid !== undefined) await endProcess(pid);
  });
  await run(command, { signal, logFile: join(directory, "log") });
  await stat(device);
  const readyMs = performance.now() - started;

  const pid = await readPid(pidFile);
  if (pid === undefined) throw new Error("qemu-storage-daemon wrote no pid file");
  return { device, mountPoint: device, pid, readyMs };
}

async function readPid(pidFile: string): Promise<number | undefined> {
  try {
    const pid = Number(await readFile(pidFile, "utf8"));
    return Number.isInteger(pid) && pid > 1 ? pid : undefined;
  } catch {
    return undefined;
  }
}

/** QEMU's option syntax: a comma in a value is doubled. */
function optionValue(text: string): string {
  return text.replaceAll(",", ",,");
}
