// Persistent dirty bitmaps over the life of a mount: kept up by all threads, in use meanwhile, and after a kill.

import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { atChange } from "../support/kill-at-write.ts";
import { mounted, startMount } from "../support/mounted.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run, until } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { MOUNT_COMMAND, roundsOfTransport, transportHas } from "../support/transport.ts";
import { attemptTsimgfs, expectRefusal } from "../support/tsimgfs.ts";
import { checkImage, expectClean } from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;

async function makeImage(directory: string): Promise<string> {
  const image = join(directory, "image.qcow2");
  await createImage(image, "qcow2", { size: 64 * MIB });
  await qemuIo(image, "qcow2", ["write -q 0 1M"]);
  await run("qemu-img", ["bitmap", "--add", image, "on"]);
  await run("qemu-img", ["bitmap", "--add", "--disable", image, "off"]);
  return image;
}

/** Writes 64 KiB at some MiBs, by processes that run side by side. */
async function writeAt(
  device: string,
  places: readonly number[],
  source = "/dev/urandom",
): Promise<void> {
  const write = async (place: number): Promise<void> => {
    const to = [`of=${device}`, `seek=${place * 16}`, "bs=64k", "count=1", "conv=notrunc"];
    await run("dd", [`if=${source}`, ...to, "status=none"]);
  };
  await Promise.all(places.map(write));
}

describe("persistent bitmaps of a mounted image", () => {
  it("have what was written while it was mounted", async () => {
    await withScratch("bitmaps", async (directory) => {
      const image = await makeImage(directory);
      const places = [0, 1, 5, 17, 33, 34, 62, 63];
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        expect(await readBitmaps(image)).toMatchObject([{ inUse: false }, { inUse: false }]);
        await writeAt(device, places);
        expect(await readBitmaps(image)).toMatchObject([{ inUse: true }, { inUse: false }]);
        if (transportHas("fallocate")) {
          await run("fallocate", ["-p", "-o", String(40 * MIB), "-l", "65536", device]);
        } else await writeAt(device, [40], "/dev/zero");
      });
      const set = [...places, 40].sort((a, b) => a - b).map((place) => place * 16);
      expect(await readBitmaps(image)).toMatchObject([
        { name: "on", inUse: false, auto: true, set },
        { name: "off", inUse: false, auto: false, set: [] },
      ]);
      await expectClean(image);
      // QEMU takes them.
      await qemuIo(image, "qcow2", [`write -q ${2 * MIB} 64k`]);
      expect(await readBitmaps(image)).toMatchObject([
        { inUse: false, set: [...set, 32].sort((a, b) => a - b) },
        { inUse: false },
      ]);
    });
  });

  it("stay in use when the daemon is killed", async () => {
    await withScratch("bitmaps", async (directory) => {
      const image = await makeImage(directory);
      await mounted([image], {}, async (mount) => {
        await writeAt(mount.device(image), [3]);
        process.kill(mount.daemonPid(), "SIGKILL");
        await until("the daemon is gone", () => mount.daemonPids().length === 0);
      });
      expect(await readBitmaps(image)).toMatchObject([{ inUse: true }, { inUse: false }]);
      expect((await run("qemu-img", ["info", image])).stdout).toContain("in-use");
      await mounted([image], {}, async (mount) => {
        await writeAt(mount.device(image), [3]);
      });
      // What was lost stays lost.
      expect(await readBitmaps(image)).toMatchObject([{ inUse: true }, { inUse: false }]);
      await expectClean(image);
    });
  });

  /** Bitmaps that may be used have all that was written. */
  async function expectNoneStale(image: string, places: readonly number[]): Promise<void> {
    const [on] = (await readBitmaps(image)) ?? [];
    const marked = new Set(on?.set);
    const lacking = places.filter((place) => !marked.has(place * 16));
    if (on?.inUse === false) expect(lacking).toEqual([]);
  }

  it("are stored, or stay in use, when the daemon is killed while it stores them", async () => {
    const random = new Random("killed while storing");
    for (let round = 0; round < roundsOfTransport(byScale(2, 20)); round++) {
      await withScratch("bitmaps", async (directory) => {
        const image = await makeImage(directory);
        const places = [1, 2, 40];
        const mount = await startMount([image]);
        try {
          await writeAt(mount.device(image), places);
          await run("sync", [mount.device(image)]);
          const daemon = mount.daemonPid();
          const watcher = atChange(image, random.between(1, 8), () => {
            if (mount.daemonPids().includes(daemon)) process.kill(daemon, "SIGKILL");
          });
          await attemptTsimgfs(["umount", mount.mountPoint]);
          await until("the daemon is gone", () => mount.daemonPids().length === 0);
          watcher.close();
        } finally {
          await mount.stop();
        }
        expect((await checkImage(image)).verdict).not.toBe("corrupt");
        await expectNoneStale(image, places);
        await mounted([image], {}, (again) => writeAt(again.device(image), [5]));
        await expectNoneStale(image, [...places, 5]);
        await expectClean(image);
      });
    }
  });

  it("stay in use where the host has no room for them", async () => {
    await withTmpfs(64 * MIB, async (tmpfs) => {
      const image = await makeImage(tmpfs.directory);
      const places = [1, 2, 40];
      const mount = await startMount([image]);
      try {
        await writeAt(mount.device(image), places);
        await run("sync", [mount.device(image)]);
        const { stdout } = await run("df", ["--output=used", "-B1", tmpfs.directory]);
        await tmpfs.resize(Number(stdout.split("\n")[1]));
        await attemptTsimgfs(["umount", mount.mountPoint]);
        await until("the daemon is gone", () => mount.daemonPids().length === 0);
      } finally {
        await mount.stop();
      }
      expect((await checkImage(image)).verdict).not.toBe("corrupt");
      await expectNoneStale(image, places);
      await tmpfs.resize(64 * MIB);
      await mounted([image], {}, (again) => writeAt(again.device(image), [5]));
      await expectNoneStale(image, [...places, 5]);
      await expectClean(image);
    });
  });

  it("keep the image from being mounted for writing with --bitmaps=refuse", async () => {
    await withScratch("bitmaps", async (directory) => {
      const image = await makeImage(directory);
      await run("mkdir", [join(directory, "mnt")]);
      const args = [...MOUNT_COMMAND, "--bitmaps=refuse", image, join(directory, "mnt")];
      await expectRefusal(args, [/image\.qcow2: has persistent bitmaps/]);
      await mounted([image], { args: ["-r", "--bitmaps=refuse"] }, async (mount) => {
        await run("head", ["-c", "4096", mount.device(image)]);
      });
    });
  });
});

describe("tsimgfs bitmap of a device", () => {
  it("is refused with the name of the mount, and nothing changes", async () => {
    await withScratch("bitmap-device", async (directory) => {
      const image = join(directory, "vm.qcow2");
      await createImage(image, "qcow2", { size: 2 ** 20 });
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        const reason = /is a device of the mount on \/.*, which keeps up the bitmaps/;
        await expectRefusal(["bitmap", "--add", device, "new"], [reason]);
      });
      await expectClean(image);
    });
  });
});
