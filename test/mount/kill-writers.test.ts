// SIGKILL for the daemon while several processes write: what was acknowledged is there after the next mount, and the image leaks at most.

import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { MARK, markedProcesses, newMark, runsNode } from "../support/daemon-processes.ts";
import { expectEither, type Versions } from "../support/either-version.ts";
import { type FsxSession, runFsx } from "../support/fsx-run.ts";
import { Mount, makeMountPoint, mounted, startMount } from "../support/mounted.ts";
import { convertToRaw } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { byScale } from "../support/scale.ts";
import { casesOfTransport, MOUNT_COMMAND } from "../support/transport.ts";
import { attemptTsimgfs } from "../support/tsimgfs.ts";
import {
  checkImage,
  expectOrdered,
  WRITE_KINDS,
  type WriteImage,
  type WriteKind,
  type WriteKindName,
  withWriteImage,
  writeKind,
} from "../support/write-images.ts";

const SIZE = byScale(12, 48) * 2 ** 20;
/** Under load the start takes longer; then the kill comes earlier in it. */
const LONGEST_START_MS = 400;
/** How often the daemon of each kind of image is killed. */
const KILLS = byScale(3, 12);
const PROCESSES = 3;
/** From the moment when all processes have begun. */
const LONGEST_LIFE_MS = byScale(500, 1500);

const QUICK_KINDS = [
  "v3",
  "clusters-4k",
  "extended-l2-16k-over-qcow2",
  "snapshot",
  "qed-16k-over-qcow2",
] as const satisfies readonly WriteKindName[];

const KINDS: readonly WriteKind[] = casesOfTransport(
  "kill-writers",
  byScale(QUICK_KINDS.map(writeKind), [...WRITE_KINDS]),
  1,
);

/** A mount in which processes write until its daemon is killed. */
async function killed(image: WriteImage, random: Random, versions: Versions): Promise<void> {
  const mount = await startMount([image.path]);
  try {
    const session: FsxSession = {
      ...versions,
      device: mount.device(image.path),
      size: image.size,
      unit: image.clusterSize,
      maxLength: random.pick([5000, 100_000, 1_500_000]),
      access: random.pick(["buffered", "direct"]),
      mappings: false,
      processes: PROCESSES,
      end: "until-gone",
    };
    await runFsx(random, session, async () => {
      await sleep(random.below(LONGEST_LIFE_MS));
      process.kill(mount.daemonPid(), "SIGKILL");
    });
  } catch (error) {
    throw await mount.explain(error);
  } finally {
    await mount.stop();
  }
}

/** A mount command whose processes are killed at some moment, most often before the device can be used. */
async function killedWhileMounting(image: WriteImage, random: Random): Promise<void> {
  const mark = newMark();
  const { mountPoint, ownDirectory } = await makeMountPoint("directory");
  const mount = new Mount(mountPoint, mark, undefined, ownDirectory);
  try {
    const command = attemptTsimgfs([...MOUNT_COMMAND, image.path, mountPoint], {
      env: { [MARK]: mark },
    });
    await sleep(random.below(LONGEST_START_MS));
    await killAll(mark);
    await command;
    // Whoever was being started when the others were killed goes on without them.
    await killAll(mark);
  } finally {
    await mount.stop();
  }
}

/** Kills all processes of ours with a mark, and those that they start meanwhile. */
async function killAll(mark: string): Promise<void> {
  for (;;) {
    const pids = markedProcesses(mark).filter(runsNode);
    if (pids.length === 0) return;
    for (const pid of pids) kill(pid);
    await sleep(1);
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch (error) {
    // It has ended by itself.
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

async function expectLeaksAtMost({ kind, path }: WriteImage, when: string): Promise<void> {
  // With lazy refcounts, QEMU's own writers leave refcounts that are too low, and a dirty bit.
  if (kind.options?.["lazy_refcounts"] === undefined) {
    const { verdict, output } = await checkImage(path, kind.format);
    expect(verdict, `${when}: ${output}`).not.toBe("corrupt");
  }
}

describe("a daemon that is killed while processes write", () => {
  it.each(KINDS)("loses nothing and leaks at most: $name", async (kind) => {
    const random = new Random(`kill ${kind.name}`);
    await withWriteImage(kind, SIZE, async (image) => {
      const attempted = join(image.directory, "attempted.raw");
      const actual = join(image.directory, "actual.raw");
      const versions = { expected: image.expected, attempted };
      for (let kill = 1; kill <= KILLS; kill++) {
        await copyFile(image.expected, attempted);
        await killed(image, random, versions);
        await expectLeaksAtMost(image, `after kill ${kill}`);
        await convertToRaw(image.path, kind.format, actual);
        await expectEither(actual, versions);
        await copyFile(actual, image.expected);
        if (kill % 3 === 0) {
          await killedWhileMounting(image, random);
          await expectLeaksAtMost(image, `after a kill while mounting, after kill ${kill}`);
        }
        if (kill % 2 === 1) {
          // The other kills come upon an image that was not put in order since the last one.
          await mounted([image.path], {}, async () => {});
          await expectOrdered(image.path, kind.format);
        }
      }
      await mounted([image.path], {}, async (mount) => {
        await runFsx(random, {
          device: mount.device(image.path),
          expected: image.expected,
          size: image.size,
          unit: image.clusterSize,
          maxLength: 100_000,
          access: "buffered",
          processes: PROCESSES,
          end: { operations: 50 },
        });
      });
      await image.expectIntact("kill");
    });
  });
});
