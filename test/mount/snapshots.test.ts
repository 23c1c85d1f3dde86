// Snapshots of a device that is mounted: made beside writers, applied when nobody has it open, deleted under
// readers; the daemon killed in the middle of it.

import { copyFile, open, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { asArray, asRecord } from "../support/json.ts";
import { atChange } from "../support/kill-at-write.ts";
import { type Mount, mounted, refusedMount, startMount } from "../support/mounted.ts";
import { convertToRaw, createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { casesOfTransport, roundsOfTransport, transportHas } from "../support/transport.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
const SIZE = 16 * MIB;

async function tell(device: string, action: string, name: string): Promise<void> {
  await run("setfattr", ["-n", `user.tsimgfs.snapshot.${action}`, "-v", name, device]);
}

async function refusalOf(device: string, action: string, name: string): Promise<string> {
  const args = ["-n", `user.tsimgfs.snapshot.${action}`, "-v", name, device];
  const { status, stderr } = await attempt("setfattr", args);
  expect(status).toBe(1);
  return stderr.trim();
}

/** Writes bytes of a seed to a range of a device. */
async function fill(device: string, seed: string, offset: number, length: number): Promise<void> {
  const file = await open(device, "r+");
  try {
    await file.write(new Random(seed).bytes(length), 0, length, offset);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function withImage(
  options: Readonly<Record<string, string | number>>,
  body: (image: string, directory: string) => Promise<void>,
): Promise<void> {
  await withScratch("snapshots", async (directory) => {
    const image = join(directory, "disk.qcow2");
    await createImage(image, "qcow2", { size: SIZE, options });
    await qemuIo(image, "qcow2", ["write -q -P 1 0 3M", "write -q -P 2 8M 1M"]);
    await body(image, directory);
  });
}

async function same(one: string, other: string): Promise<void> {
  await run("cmp", [one, other]);
}

function listed(mount: Mount, image: string): Promise<string[]> {
  return readdir(join(mount.mountPoint, "disk.snapshots")).catch((error: unknown) => {
    throw new Error(`${image}: ${String(error)}`);
  });
}

const OPTIONS = casesOfTransport(
  "snapshots",
  [{}, { compat: "0.10", cluster_size: 4096 }, { extended_l2: "on" }],
  1,
);

describe("snapshots of a mounted device", () => {
  it.each(OPTIONS)("are there at once, and gone at once: %j", async (options) => {
    await withImage(options, async (image, directory) => {
      const [first, second] = [join(directory, "1.raw"), join(directory, "2.raw")];
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        expect(await listed(mount, image)).toEqual([]);
        await tell(device, "create", "one");
        await copyFile(device, first);
        expect(await listed(mount, image)).toEqual(["one.raw"]);
        await fill(device, "a", 2 * MIB, 3 * MIB);
        await tell(device, "create", "two");
        await copyFile(device, second);
        await fill(device, "b", 0, MIB);
        await same(mount.snapshot(image, "one"), first);
        await same(mount.snapshot(image, "two"), second);
        await tell(device, "apply", "one");
        await same(device, first);
        await tell(device, "apply", "two");
        await same(device, second);
        await tell(device, "delete", "one");
        expect(await listed(mount, image)).toEqual(["two.raw"]);
        await expect(stat(mount.snapshot(image, "one"))).rejects.toThrow("ENOENT");
        await same(mount.snapshot(image, "two"), second);
        const stats = asRecord(JSON.parse(await readFile(mount.stats(image), "utf8")));
        expect(asArray(stats["snapshots"]).map((each) => asRecord(each)["name"])).toEqual(["two"]);
      });
      await expectClean(image);
      await convertToRaw(image, "qcow2", `${image}.raw`);
      await same(`${image}.raw`, second);
    });
  });

  it("are the same to the command as those of an image", async () => {
    await withImage({}, async (image) => {
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        await tsimgfs(["snapshot", "-c", "one", device]);
        expect((await tsimgfs(["snapshot", "-l", device])).stdout).toMatch(/^1 +one +0 B/m);
        await expectRefusal(["snapshot", "-c", "two", image], [/is mounted; name its device/]);
        await expectRefusal(["snapshot", "-d", "none", device], [/no such snapshot/]);
        const file = await open(device, "r");
        await expectRefusal(["snapshot", "-a", "one", device], [/is in use/]);
        await file.close();
        await tsimgfs(["snapshot", "-a", "1", device]);
        await tsimgfs(["snapshot", "-d", "one", device]);
        expect((await tsimgfs(["snapshot", "-l", device])).stdout).toBe("");
      });
    });
  });

  it("are not applied to what is open, whose bytes stay", async () => {
    await withImage({}, async (image) => {
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        await tell(device, "create", "one");
        await fill(device, "a", 0, MIB);
        const file = await open(device, "r");
        expect(await refusalOf(device, "apply", "one")).toMatch(/busy/);
        const { buffer } = await file.read(Buffer.alloc(MIB), 0, MIB, 0);
        expect(buffer.equals(new Random("a").bytes(MIB))).toBe(true);
        await file.close();
        await tell(device, "apply", "one");
        const now = await readFile(device);
        expect(now.subarray(0, MIB).every((byte) => byte === 1)).toBe(true);
      });
    });
  });

  it("give the device the size that it had, at once", async () => {
    await withImage({}, async (image) => {
      await run("qemu-img", ["snapshot", "-c", "small", image]);
      await run("qemu-img", ["resize", "-q", image, "40M"]);
      await run("qemu-img", ["snapshot", "-c", "large", image]);
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        for (const [name, size] of [
          ["small", SIZE],
          ["large", 40 * MIB],
          ["small", SIZE],
        ] as const) {
          await tell(device, "apply", name);
          expect((await stat(device)).size).toBe(size);
          expect((await readFile(device)).length).toBe(size);
          await fill(device, name, size - MIB, MIB);
        }
      });
      await expectClean(image);
    });
  });

  it("that are deleted under a reader show him nothing else", async () => {
    await withImage({}, async (image) => {
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        await tell(device, "create", "one");
        await fill(device, "a", 0, 4 * MIB);
        const reader = await run("sh", [
          "-c",
          // The first byte, then the rest when the snapshot is gone and its clusters have other owners.
          'exec <"$1"; dd bs=1 count=1 status=none | od -An -tu1; ' +
            'setfattr -n user.tsimgfs.snapshot.delete -v one "$2"; ' +
            'dd if="$2" bs=1M count=4 skip=4 status=none | dd of="$2" bs=1M seek=10 conv=notrunc,fsync status=none; ' +
            "dd bs=64k skip=40 iflag=fullblock of=/dev/null status=none; echo status $?",
          "sh",
          mount.snapshot(image, "one"),
          device,
        ]);
        expect(reader.stdout).toMatch(/^ +1\nstatus 1$/m);
        expect(reader.stderr).toMatch(
          transportHas("stale-files") ? /Stale file handle/ : /No such file/,
        );
      });
      await expectClean(image);
    });
  });

  it("are what the device was at a moment, whoever writes to it", async () => {
    await withImage({}, async (image) => {
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        const file = await open(device, "r+");
        // Numbers in turn at three places: a snapshot must not have a later one where an earlier one is missing.
        const places = [0, 5 * MIB, 12 * MIB];
        let isDone = false;
        const write = async (): Promise<void> => {
          for (let number = 1; !isDone; number++) {
            const bytes = Buffer.alloc(8);
            bytes.writeUInt32BE(number);
            for (const place of places) await file.write(bytes, 0, 8, place + (number % 64) * 4096);
          }
        };
        const writing = write();
        const count = byScale(6, 40);
        for (let index = 0; index < count; index++) await tell(device, "create", `s${index}`);
        isDone = true;
        await writing;
        await file.close();
        for (let index = 0; index < count; index++) {
          const disk = await readFile(mount.snapshot(image, `s${index}`));
          const highest = places.map((place) => {
            const numbers = Array.from({ length: 64 }, (_, at) =>
              disk.readUInt32BE(place + at * 4096),
            );
            return Math.max(0, ...numbers.filter((number) => number !== 0x0101_0101));
          });
          const [first = 0, second = 0, third = 0] = highest;
          expect([first, first - 1], `s${index}: ${highest}`).toContain(second);
          expect([second, second - 1], `s${index}: ${highest}`).toContain(third);
        }
        for (let index = 0; index < count; index += 2) await tell(device, "delete", `s${index}`);
      });
      await expectClean(image);
    });
  });
});

describe("what goes wrong while snapshots change", () => {
  it("a killed daemon leaves the image as it was or as it is to be", async () => {
    const random = new Random("killed");
    for (let round = 0; round < roundsOfTransport(byScale(3, 20)); round++) {
      await withImage({ cluster_size: 4096 }, async (image, directory) => {
        const mount = await startMount([image]);
        try {
          const device = mount.device(image);
          await copyFile(device, join(directory, "first.raw"));
          await tell(device, "create", "first");
          const script =
            "while :; do for a in create apply delete; do " +
            'setfattr -n user.tsimgfs.snapshot.$a -v again "$1" || exit 0; done; done';
          const changing = attempt("sh", ["-c", script, "sh", device]);
          await sleep(random.below(600));
          process.kill(mount.daemonPid(), "SIGKILL");
          await changing;
        } finally {
          await mount.stop();
        }
        const { status } = await attempt("qemu-img", ["check", "-q", image]);
        expect([0, 3]).toContain(status);
        await run("qemu-img", ["convert", "-l", "first", "-O", "raw", image, `${image}.raw`]);
        await same(`${image}.raw`, join(directory, "first.raw"));
        await mounted([image], {}, (again) => same(again.device(image), `${image}.raw`));
        await expectClean(image);
      });
    }
  });

  it("a daemon that is killed while it applies one leaves the disk as it was or as it is to be", async () => {
    const random = new Random("killed while applying");
    for (let round = 0; round < roundsOfTransport(byScale(2, 20)); round++) {
      await withImage({ cluster_size: 4096 }, async (image, directory) => {
        const raws = ["one", "two"].map((name) => join(directory, `${name}.raw`));
        const mount = await startMount([image]);
        try {
          const device = mount.device(image);
          for (const [index, name] of ["one", "two"].entries()) {
            await fill(device, name, index * 5 * MIB, 4 * MIB);
            await tell(device, "create", name);
            await copyFile(device, raws[index] ?? "");
          }
          const daemon = mount.daemonPid();
          const watcher = atChange(image, random.between(1, 30), () =>
            process.kill(daemon, "SIGKILL"),
          );
          const script =
            "while :; do for s in one two; do " +
            'setfattr -n user.tsimgfs.snapshot.apply -v $s "$1" || exit 0; done; done';
          await attempt("sh", ["-c", script, "sh", device]);
          watcher.close();
        } finally {
          await mount.stop();
        }
        expect((await checkImage(image)).verdict).not.toBe("corrupt");
        await convertToRaw(image, "qcow2", `${image}.raw`);
        const compared = raws.map((raw) => attempt("cmp", [`${image}.raw`, raw]));
        expect((await Promise.all(compared)).map(({ status }) => status)).toContain(0);
        await mounted([image], {}, (again) => same(again.device(image), `${image}.raw`));
        await expectClean(image);
      });
    }
  });
});

describe("mount --snapshot", () => {
  it("shows the disk as it was, read-only, on a directory or a file", async () => {
    await withImage({}, async (image, directory) => {
      const before = join(directory, "before.raw");
      await convertToRaw(image, "qcow2", before);
      await run("qemu-img", ["snapshot", "-c", "one", image]);
      await qemuIo(image, "qcow2", ["write -q -P 9 0 16M"]);
      await run("qemu-img", ["resize", "-q", image, "20M"]);
      for (const name of ["one", "1"]) {
        await mounted([image], { args: ["--snapshot", name] }, async (mount) => {
          const device = mount.device(image);
          await same(device, before);
          await expect(open(device, "r+")).rejects.toThrow("EROFS");
        });
      }
      if (transportHas("file-mountpoint")) {
        const file = { mountPointKind: "file", args: ["--snapshot", "one"] } as const;
        await mounted([image], file, (mount) => same(mount.mountPoint, before));
      }
      const refuse = async (args: readonly string[], reason: RegExp): Promise<void> =>
        expect(await refusedMount([image], { args })).toMatch(reason);
      await refuse(["--snapshot", "none"], /has no snapshot "none"/);
      await refuse(["--snapshot", "one", "-o", "rw"], /contradicts -o rw/);
      await refuse(["--snapshot", "one", "--stream"], /contradicts -r and --snapshot/);
    });
  });
});
