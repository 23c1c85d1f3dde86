// A tsimgfs mount for the length of a test: it is always unmounted, and its daemon never survives.

import { chown, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { MARK, markedProcesses, newMark, runsNode } from "./daemon-processes.ts";
import { mountAt } from "./mount-table.ts";
import { attempt, type Identity, until } from "./run.ts";
import { makeScratch, scratchRoot } from "./scratch.ts";
import { MOUNT_COMMAND } from "./transport.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "./tsimgfs.ts";

export interface MountOptions {
  /** Options of `tsimgfs mount`, before the images. */
  readonly args?: readonly string[];
  readonly identity?: Identity;
  /** Existing mount point; without it a new directory (or file) is made, and removed at the end. */
  readonly mountPoint?: string;
  /** What to make if there is no mountPoint. */
  readonly mountPointKind?: "directory" | "file";
  readonly env?: Readonly<Record<string, string>>;
  /** "none" leaves out the log that otherwise explains failures. */
  readonly log?: "none";
  /** Limit for the body of `mounted`; then the mount is taken away from under it. */
  readonly timeoutMs?: number;
}

const STOP_TIMEOUT_MS = 30_000;
const BODY_TIMEOUT_MS = 150_000;

/** Name of an image in the mount: without directory and without the extension of its format. */
export function deviceStem(image: string): string {
  return basename(image).replace(/\.(qcow2|qed|raw|img)$/, "");
}

/** An active mount. */
export class Mount {
  readonly mountPoint: string;
  readonly mark: string;
  readonly #identity: Identity | undefined;
  readonly #ownDirectory: string | undefined;

  constructor(
    mountPoint: string,
    mark: string,
    identity: Identity | undefined,
    ownDirectory: string | undefined,
  ) {
    this.mountPoint = mountPoint;
    this.mark = mark;
    this.#identity = identity;
    this.#ownDirectory = ownDirectory;
  }

  /** Path of the device of an image. */
  device(image: string): string {
    return join(this.mountPoint, `${deviceStem(image)}.raw`);
  }

  stats(image: string): string {
    return join(this.mountPoint, `${deviceStem(image)}.stats.json`);
  }

  /** Path of the device of an internal snapshot. */
  snapshot(image: string, name: string): string {
    return join(this.mountPoint, `${deviceStem(image)}.snapshots`, `${name}.raw`);
  }

  isMounted(): boolean {
    return mountAt(this.mountPoint) !== undefined;
  }

  /** Process ids of the daemon: one, unless it is gone. */
  daemonPids(): number[] {
    return markedProcesses(this.mark).filter(runsNode);
  }

  /** Process id of the daemon, which must be running. */
  daemonPid(): number {
    const [pid, ...others] = this.daemonPids();
    if (pid === undefined || others.length > 0) {
      throw new Error(`one daemon expected at ${this.mountPoint}, found ${[pid, ...others]}`);
    }
    return pid;
  }

  /** Adds what the daemon logged so far to the message of an error, and returns the error. */
  async explain(error: unknown): Promise<unknown> {
    const log = await readFile(logPath(this.mark), "utf8").catch(() => "");
    if (error instanceof Error && log !== "") {
      error.message += `\n--- log of the daemon\n${log}`;
    }
    return error;
  }

  /** Unmounts through the command and waits for the daemon's end. Uses force, and fails, if that does not work. */
  async stop(): Promise<void> {
    const problems: string[] = [];
    if (mountAt(this.mountPoint) !== undefined) {
      await tsimgfs(["umount", this.mountPoint], {
        identity: this.#identity,
        timeoutMs: STOP_TIMEOUT_MS,
      }).catch((error: unknown) => problems.push(String(error)));
    }
    await until("the daemon ends", () => markedProcesses(this.mark).length === 0).catch(
      (error: unknown) => problems.push(String(error)),
    );
    await this.#force(problems);
    if (this.#ownDirectory !== undefined && problems.length === 0) {
      await rm(this.#ownDirectory, { recursive: true, force: true });
    }
    const log = await readFile(logPath(this.mark), "utf8").catch(() => "");
    await rm(logPath(this.mark), { force: true });
    if (problems.length > 0) {
      const lines = [...problems, "--- log of the daemon", log];
      throw new Error(`the mount at ${this.mountPoint} did not end cleanly\n${lines.join("\n")}`);
    }
  }

  /** Last resort: lazy unmounts, then SIGKILL for the processes that this mount started. */
  async #force(problems: string[]): Promise<void> {
    for (let tries = 0; mountAt(this.mountPoint) !== undefined && tries < 5; tries++) {
      problems.push("still mounted: unmounted lazily");
      await attempt("fusermount3", ["-u", "-z", this.mountPoint]);
    }
    for (const pid of markedProcesses(this.mark)) {
      problems.push(`daemon ${pid} was killed`);
      process.kill(pid, "SIGKILL");
    }
  }
}

/** The log of a mount's daemon. */
function logPath(mark: string): string {
  return join(scratchRoot(), `daemon-${mark}.log`);
}

/** Makes an empty log that the daemon may write, and the option that names it. */
async function logOption(mark: string, options: MountOptions): Promise<string[]> {
  if (options.log === "none" || options.args?.includes("--log-file")) {
    return [];
  }
  await writeFile(logPath(mark), "");
  if (options.identity !== undefined) {
    await chown(logPath(mark), options.identity.uid, options.identity.gid);
  }
  return ["--log-file", logPath(mark)];
}

/** A place to mount on, in a scratch directory of its own. */
export async function makeMountPoint(
  kind: "directory" | "file",
  identity?: Identity,
): Promise<{ readonly ownDirectory: string; readonly mountPoint: string }> {
  const ownDirectory = await makeScratch("mount", identity);
  if (kind === "directory") {
    return { ownDirectory, mountPoint: ownDirectory };
  }
  const mountPoint = join(ownDirectory, "device");
  await writeFile(mountPoint, "");
  if (identity !== undefined) {
    await chown(mountPoint, identity.uid, identity.gid);
  }
  return { ownDirectory, mountPoint };
}

/** Mounts images in the background. The caller must call `stop`, whatever happens. */
export async function startMount(
  images: readonly string[],
  options: MountOptions = {},
): Promise<Mount> {
  const mark = newMark();
  const { identity } = options;
  const made =
    options.mountPoint === undefined
      ? await makeMountPoint(options.mountPointKind ?? "directory", identity)
      : { ownDirectory: undefined, mountPoint: options.mountPoint };
  const mount = new Mount(made.mountPoint, mark, identity, made.ownDirectory);
  try {
    const log = await logOption(mark, options);
    await tsimgfs([...MOUNT_COMMAND, ...log, ...(options.args ?? []), ...images, made.mountPoint], {
      identity,
      env: { ...options.env, [MARK]: mark },
    });
    if (!mount.isMounted()) {
      throw new Error(`tsimgfs mount succeeded, but nothing is mounted at ${made.mountPoint}`);
    }
  } catch (error) {
    await mount.stop().catch(() => {});
    throw error;
  }
  return mount;
}

/** Mounts images, calls `body`, and unmounts, also when `body` fails or takes too long. */
export async function mounted<T>(
  images: readonly string[],
  options: MountOptions,
  body: (mount: Mount) => Promise<T>,
): Promise<T> {
  const mount = await startMount(images, options);
  const timeoutMs = options.timeoutMs ?? BODY_TIMEOUT_MS;
  let limit: NodeJS.Timeout | undefined;
  const tooLong = new Promise<never>((_, reject) => {
    limit = setTimeout(() => reject(new Error(`mount in use for ${timeoutMs} ms`)), timeoutMs);
  });
  let result: T;
  try {
    result = await Promise.race([body(mount), tooLong]);
  } catch (error) {
    const explained = await mount.explain(error);
    await mount.stop().catch(() => {});
    throw explained;
  } finally {
    clearTimeout(limit);
  }
  await mount.stop();
  return result;
}

/** Expects that `tsimgfs mount` refuses in one line and leaves neither a mount nor a process behind. */
export async function refusedMount(
  images: readonly string[],
  options: MountOptions = {},
): Promise<string> {
  const mark = newMark();
  const made =
    options.mountPoint === undefined
      ? await makeMountPoint(options.mountPointKind ?? "directory", options.identity)
      : { ownDirectory: undefined, mountPoint: options.mountPoint };
  const mount = new Mount(made.mountPoint, mark, options.identity, made.ownDirectory);
  const before = mountAt(made.mountPoint);
  try {
    const result = await attemptTsimgfs(
      [...MOUNT_COMMAND, ...(options.args ?? []), ...images, made.mountPoint],
      { identity: options.identity, env: { ...options.env, [MARK]: mark } },
    );
    const line = refusalOf(result);
    await until("no process is left", () => markedProcesses(mark).length === 0, 5_000);
    if (mountAt(made.mountPoint)?.device !== before?.device) {
      throw new Error(`refused, but something is mounted at ${made.mountPoint}`);
    }
    return line;
  } finally {
    if (mountAt(made.mountPoint)?.device !== before?.device) {
      await mount.stop().catch(() => {});
    }
    if (made.ownDirectory !== undefined) {
      await rm(made.ownDirectory, { recursive: true, force: true });
    }
  }
}
