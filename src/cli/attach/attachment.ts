/**
 * What attach has made of an image: a mount on a directory of its own, loop devices on files in it, and file
 * systems on those. All of it is found in what the kernel says of itself (mount table, /sys): there is no other
 * record that could be wrong. The directory's name follows from the image's.
 */

import { createHash } from "node:crypto";
import fs from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { findEnding } from "../../daemon/endings.ts";
import { byMountUsers, openFiles } from "../../daemon/mount-users.ts";
import { readDaemonPid } from "../../daemon/mounts.ts";
import { statfsAnswers } from "../../daemon/statfs-answers.ts";
import { unmount, waitForDaemon } from "../../daemon/unmount.ts";
import { TsimgfsError, UsageError } from "../../errors.ts";
import {
  findMount,
  type MountEntry,
  readAllMounts,
  readMountTable,
} from "../../fuse/mount-table.ts";
import { deviceNameOf } from "../../tree/names.ts";
import { type LoopDevice, listLoopDevices, removeLoopDevice } from "./loop-devices.ts";
import { runToolPatiently } from "./run-tool.ts";

/** Here are the directories of all attached images. */
const ROOT = "/run/tsimgfs";
const HASH_DIGITS = 16;
/** As many as the kernel follows. */
const LINKS_MAX = 40;

const POLL_MS = 10;
/** The kernel closes the file of a loop device a moment after the device has lost it. */
const CLOSE_DEADLINE_MS = 5000;

export class Attachment {
  /** Where the image is mounted; only root may look. */
  readonly directory: string;

  /** @param directory below ROOT */
  private constructor(directory: string) {
    this.directory = directory;
  }

  /** That of an image, whether it is attached or not; the image itself need not be there any more. */
  static ofImage(image: string): Attachment {
    const hash = createHash("sha256").update(canonicalImage(image)).digest("hex");
    return new Attachment(join(ROOT, hash.slice(0, HASH_DIGITS)));
  }

  /**
   * That whose daemon has this file open, while its image is not any more where it was when it was attached.
   *
   * @returns with the image's name of then
   */
  static async ofRenamed(
    image: string,
  ): Promise<{ attachment: Attachment; name: string } | undefined> {
    const path = canonicalImage(image);
    for (const { mountpoint, source } of readMountTable()) {
      // A daemon that does not answer is not asked.
      if (dirname(mountpoint) !== ROOT || !(await statfsAnswers(mountpoint))) continue;
      const pid = readDaemonPid(mountpoint);
      const files = pid === undefined ? [] : openFiles(pid);
      const name = canonicalImage(source);
      if (!files.includes(path) || files.includes(name) || files.includes(`${name} (deleted)`))
        continue;
      return { attachment: new Attachment(mountpoint), name };
    }
    return undefined;
  }

  /** That which a loop device belongs to; undefined: it is no loop device of attach. */
  static ofLoopDevice({ backingFile }: LoopDevice): Attachment | undefined {
    const [hash = ""] = backingFile.slice(ROOT.length + 1).split("/");
    const isOurs = backingFile.startsWith(`${ROOT}/`) && hash.length === HASH_DIGITS;
    return isOurs ? new Attachment(join(ROOT, hash)) : undefined;
  }

  get isMounted(): boolean {
    return findMount(this.directory) !== undefined;
  }

  /** NAME.raw of the image. */
  deviceFile(image: string): string {
    return join(this.directory, `${deviceNameOf(image)}.raw`);
  }

  /** Its loop devices, the one of the whole disk first. */
  loopDevices(): LoopDevice[] {
    return listLoopDevices().filter(({ backingFile }) =>
      backingFile.startsWith(`${this.directory}/`),
    );
  }

  /** Something of it is there: devices, the mount, or a daemon that was told to end and has not closed the image. */
  get isThere(): boolean {
    const hasDaemon = (): boolean => findEnding(this.directory) !== undefined;
    return this.isMounted || this.loopDevices().length > 0 || hasDaemon();
  }

  /** Make the directory that the image is mounted on. */
  prepare(): void {
    fs.mkdirSync(this.directory, { recursive: true, mode: 0o700 });
  }

  /** Remove the directory, unless something is there. */
  removeDirectory(): void {
    try {
      fs.rmdirSync(this.directory);
      fs.rmdirSync(ROOT);
    } catch {
      // Mounted, in use by another image, or gone.
    }
  }

  /**
   * Take everything down, from the top: file systems, loop devices, the mount. Returns when the image is
   * closed.
   *
   * @throws {TsimgfsError} EBUSY: something is in use, and what lies below it stays
   */
  async takeDown(): Promise<void> {
    try {
      await this.#takeDownMount();
      // One that was told to end has taken the mount out of sight itself.
      const daemon = findEnding(this.directory);
      if (daemon !== undefined) await waitForDaemon(daemon, this.directory);
    } finally {
      this.removeDirectory();
    }
  }

  async #takeDownMount(): Promise<void> {
    const deadline = performance.now() + CLOSE_DEADLINE_MS;
    for (;;) {
      await this.#removeDevices();
      if (!this.isMounted) return;
      try {
        await unmount(this.directory, { lazy: false });
        return;
      } catch (error) {
        // Another detach was faster; what it waits for is waited for here, too.
        if (error instanceof UsageError && !this.isMounted) return;
        // What an attach that was killed had just begun may still have come to be.
        const isBusy = error instanceof TsimgfsError && error.code === "EBUSY";
        if (!isBusy || !this.isMounted || performance.now() > deadline) throw error;
        await sleep(POLL_MS);
      }
    }
  }

  async #removeDevices(): Promise<void> {
    const devices = this.loopDevices();
    for (const mount of fileSystemsOn(devices).reverse()) await unmountFileSystem(mount);
    // Last made, first removed.
    for (const device of devices.reverse()) await removeLoopDevice(device);
  }
}

async function unmountFileSystem({ mountpoint, device }: MountEntry): Promise<void> {
  const mountsThere = (): MountEntry[] =>
    readAllMounts().filter((mount) => mount.mountpoint === mountpoint);
  const isThere = (): boolean => mountsThere().some((mount) => mount.device === device);
  // Another detach was faster.
  if (!isThere()) return;
  if (mountsThere().at(-1)?.device !== device) {
    const reason = "something else is mounted on top of it; unmount that, and detach again";
    throw new TsimgfsError("EBUSY", mountpoint, reason);
  }
  try {
    await runToolPatiently("umount", ["--", mountpoint], mountpoint);
  } catch (cause) {
    const isBusy = cause instanceof TsimgfsError && cause.code === "EBUSY";
    const isUnmounted = !isThere();
    // Another detach was faster.
    if (!isBusy && isUnmounted) return;
    // If it is out of sight, it is under way.
    if (!isBusy || isUnmounted) throw cause;
    const reason = `is in use${byMountUsers(mountpoint)}; end that, and detach again`;
    throw new TsimgfsError("EBUSY", mountpoint, reason, { cause });
  }
}

/** The mounts of file systems that lie on these devices, or on partitions of them; oldest first. */
function fileSystemsOn(devices: readonly LoopDevice[]): MountEntry[] {
  const all = devices.flatMap((device) => [device, ...device.partitions]);
  const numbers = new Set(all.map(({ deviceNumber }) => deviceNumber));
  // The numbers of some file systems, such as btrfs, are not those of their devices.
  const paths = new Set(all.map(({ path }) => path));
  return readAllMounts().filter(({ device, source }) => numbers.has(device) || paths.has(source));
}

/** The path without symbolic links, of what is there or was there. */
function canonicalImage(image: string): string {
  let path = resolve(image);
  for (let links = 0; links < LINKS_MAX; links++) {
    try {
      return fs.realpathSync(path);
    } catch {
      const target = linkTarget(path);
      if (target === undefined) break;
      path = resolve(dirname(path), target);
    }
  }
  return join(realDirectory(dirname(path)), basename(path));
}

function linkTarget(path: string): string | undefined {
  try {
    return fs.readlinkSync(path);
  } catch {
    return undefined;
  }
}

function realDirectory(path: string): string {
  try {
    return fs.realpathSync(path);
  } catch {
    return path;
  }
}
