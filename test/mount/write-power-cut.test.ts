// Durability on a real host file system: the image lies on ext4 on a loop device, and what that device had got at a
// moment is what a power cut at that moment would have left.

import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { runFsx } from "../support/fsx-run.ts";
import { withFileSystem, withLoop } from "../support/loop.ts";
import { type Mount, startMount } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { convertToRaw, createImage } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { casesOfTransport, roundsOfTransport } from "../support/transport.ts";
import { checkImage, expectDisk } from "../support/write-images.ts";

const MIB = 2 ** 20;
const DISK_SIZE = 16 * MIB;

/** ext4 that writes nothing by itself for the length of a test. */
const HOST_OPTIONS = ["-t", "ext4", "-o", "commit=600"] as const;

class Host {
  readonly #directory: string;
  readonly path: string;
  /** A raw file: what the device is to contain. */
  readonly expected: string;
  readonly random: Random;

  constructor(directory: string, path: string, random: Random) {
    this.#directory = directory;
    this.path = path;
    this.expected = join(directory, "expected");
    this.random = random;
  }

  /** The same dd to the device and to the file that says what it must contain. */
  async dd(device: string, args: readonly string[], deviceArgs: readonly string[]): Promise<void> {
    const source = join(this.#directory, "noise");
    const common = [`if=${source}`, "status=none", ...args];
    await run("dd", [...common, ...deviceArgs, `of=${device}`]);
    await run("dd", [...common, "conv=notrunc", `of=${this.expected}`]);
  }

  /**
   * Cuts the power: calls `body` with the image as a host finds it that has just started again. The
   * daemon, if it still runs, stands still while the disk is copied.
   */
  async afterPowerCut(
    daemon: number | undefined,
    body: (image: string) => Promise<void>,
  ): Promise<void> {
    const cut = join(this.#directory, "cut");
    if (daemon !== undefined) {
      process.kill(daemon, "SIGSTOP");
    }
    try {
      await run("cp", ["--sparse=always", join(this.#directory, "host"), cut]);
    } finally {
      if (daemon !== undefined) {
        process.kill(daemon, "SIGCONT");
      }
    }
    await withLoop(cut, [], (loop) =>
      withFileSystem(loop, ["-t", "ext4"], (directory) => body(join(directory, "disk.qcow2"))),
    );
    await run("rm", [cut]);
  }
}

/** Makes a host with an image in it, mounts the image, and calls `body`, which may end the mount. */
async function withHost(
  label: string,
  options: Readonly<Record<string, string | number>>,
  body: (host: Host, mount: Mount) => Promise<void>,
): Promise<void> {
  await withScratch("power", async (directory) => {
    const random = new Random(`power cut ${label}`);
    const disk = join(directory, "host");
    await run("truncate", ["-s", "160M", disk]);
    await run("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk]);
    await run("dd", ["if=/dev/urandom", `of=${directory}/noise`, "bs=1M", "count=4"]);
    await withLoop(disk, [], (loop) =>
      withFileSystem(loop, HOST_OPTIONS, async (hostDirectory) => {
        const path = join(hostDirectory, "disk.qcow2");
        await createImage(path, "qcow2", { size: DISK_SIZE, options });
        await run("sync", ["-f", hostDirectory]);
        const host = new Host(directory, path, random);
        await run("truncate", ["-s", String(DISK_SIZE), host.expected]);
        const mount = await startMount([path]);
        try {
          await body(host, mount);
        } finally {
          await mount.stop();
        }
      }),
    );
  });
}

async function expectNotCorrupt(image: string): Promise<void> {
  const { verdict, output } = await checkImage(image);
  expect(verdict, output).not.toBe("corrupt");
}

const OPTIONS: readonly {
  readonly name: string;
  readonly options: Readonly<Record<string, string | number>>;
}[] = [
  { name: "v3", options: {} },
  ...byScale(
    [],
    [
      { name: "v2", options: { compat: "0.10" } },
      { name: "clusters of 4 KiB", options: { cluster_size: 4096 } },
      { name: "extended L2", options: { extended_l2: "on" } },
    ],
  ),
];

/** How data become durable, and are written. */
const WAYS = casesOfTransport(
  "durable",
  [
    {
      how: "conv=fsync",
      args: ["bs=1M", "count=3", "seek=2"],
      deviceArgs: ["conv=notrunc,fsync"],
    },
    {
      how: "conv=fdatasync",
      args: ["bs=70000", "count=30", "seek=9"],
      deviceArgs: ["conv=notrunc,fdatasync"],
    },
    {
      how: "oflag=sync",
      args: ["bs=300000", "count=5", "seek=9"],
      deviceArgs: ["conv=notrunc", "oflag=sync"],
    },
    {
      how: "oflag=dsync",
      args: ["bs=4096", "count=20", "seek=900"],
      deviceArgs: ["conv=notrunc", "oflag=dsync"],
    },
    {
      how: "oflag=direct,dsync",
      args: ["bs=4096", "count=20", "seek=1900"],
      deviceArgs: ["conv=notrunc", "oflag=direct,dsync"],
    },
  ],
  2,
);

describe.skipIf(!IS_ROOT).each(OPTIONS)(
  "after a power cut (needs root), $name,",
  ({ name, options }) => {
    it.each(WAYS)("what dd wrote with $how is there", async ({ how, args, deviceArgs }) => {
      await withHost(`${name} ${how}`, options, async (host, mount) => {
        await host.dd(mount.device(host.path), args, deviceArgs);
        await host.afterPowerCut(mount.daemonPid(), async (image) => {
          await expectNotCorrupt(image);
          await expectDisk(image, "qcow2", host.expected);
        });
      });
    });

    it("what was written before the end of the mount is there, in a clean image", async () => {
      await withHost(`${name} umount`, options, async (host, mount) => {
        await runFsx(host.random, {
          device: mount.device(host.path),
          expected: host.expected,
          size: DISK_SIZE,
          unit: 65536,
          maxLength: 100_000,
          access: "buffered",
          processes: 2,
          end: { operations: 100 },
        });
        await mount.stop();
        await host.afterPowerCut(undefined, async (image) => {
          expect((await checkImage(image)).verdict).toBe("clean");
          await expectDisk(image, "qcow2", host.expected);
        });
      });
    });

    it("what was not synced may be lost, what was is there, and the image is not corrupt", async () => {
      await withHost(`${name} unsynced`, options, async (host, mount) => {
        const device = mount.device(host.path);
        for (let round = 0; round < roundsOfTransport(byScale(2, 8)); round++) {
          const session = {
            device,
            expected: host.expected,
            size: DISK_SIZE / 2,
            unit: 65536,
            maxLength: 100_000,
            access: "buffered",
            processes: 2,
            end: { operations: 60 },
          } as const;
          await runFsx(host.random, session);
          await run("sync", [device]);
          // The second half of the disk is written and not synced.
          const seek = ["conv=notrunc", `seek=${DISK_SIZE / 2}`, "oflag=seek_bytes"];
          const count = host.random.between(1, 4 * MIB);
          const noise = ["if=/dev/urandom", `count=${count}`, "iflag=count_bytes", "bs=50000"];
          await run("dd", [...noise, `of=${device}`, ...seek]);
          await host.afterPowerCut(mount.daemonPid(), async (image) => {
            await expectNotCorrupt(image);
            const disk = `${host.expected}.disk`;
            await convertToRaw(image, "qcow2", disk);
            await run("cmp", ["-n", String(DISK_SIZE / 2), disk, host.expected]);
          });
        }
      });
    });
  },
);
