// NAME.partitions/N.raw on the real kernel: tools for file systems without loop devices and without root,
// tables that change under a mount, and one content whichever of the files it is written and read through.

import { existsSync } from "node:fs";
import {
  chown,
  copyFile,
  type FileHandle,
  mkdir,
  open,
  readdir,
  readFile,
  rm,
  stat,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { makeFileTree } from "../support/file-tree.ts";
import { withLoop } from "../support/loop.ts";
import { type Mount, mounted } from "../support/mounted.ts";
import { IS_ROOT, ORDINARY_USER, ordinaryUserObstacle } from "../support/ordinary-user.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { itMainly, itNeeds, transportHas } from "../support/transport.ts";
import { expectRefusal } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";
import { readXattrs } from "../support/xattr.ts";

const MIB = 2 ** 20;
const TWO = "label: gpt\nsize=16M, name=first\nsize=24M, name=second\n";
const START_OF_FIRST = MIB;
const START_OF_SECOND = 17 * MIB;

describe("partitions in a mount", () => {
  let directory = "";
  const partition = (mount: Mount, number: number): string =>
    join(mount.mountPoint, "disk.partitions", `${number}.raw`);
  const names = (mount: Mount): Promise<string[]> =>
    readdir(join(mount.mountPoint, "disk.partitions"));

  beforeAll(async () => {
    directory = await makeScratch("partitions", ORDINARY_USER);
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** An image with this partition table, which is made once. */
  async function makeDisk(script: typeof TWO | undefined): Promise<string> {
    const path = join(directory, "disk.qcow2");
    await rm(path, { force: true });
    const template = join(directory, script === undefined ? "empty.template" : "two.template");
    if (!existsSync(template)) {
      await createImage(path, "qcow2", { size: 64 * MIB });
      if (script !== undefined) {
        await mounted([path], {}, (mount) =>
          run("sfdisk", ["--quiet", mount.device(path)], { input: script }),
        );
      }
      await copyFile(path, template);
    }
    await copyFile(template, path);
    await chown(path, ORDINARY_USER.uid, ORDINARY_USER.gid);
    return path;
  }

  it("are those of the table, with their size, type, name and place", async () => {
    const path = await makeDisk(TWO);
    await mounted([path], {}, async (mount) => {
      expect(await names(mount)).toEqual(["1.raw", "2.raw"]);
      const { stdout } = await run("stat", ["-c", "%s", partition(mount, 1), partition(mount, 2)]);
      expect(stdout).toBe(`${16 * MIB}\n${24 * MIB}\n`);
      const xattrs = await readXattrs(partition(mount, 2));
      const ask = async (what: string): Promise<string> =>
        (await run("sfdisk", [what, mount.device(path), "2"])).stdout.trimEnd();
      expect(xattrs.get("user.tsimgfs.partition-start")).toBe(String(START_OF_SECOND));
      expect(xattrs.get("user.tsimgfs.partition-name")).toBe("second");
      expect(xattrs.get("user.tsimgfs.partition-type")).toBe(await ask("--part-type"));
      await expectRefusal(["stats", partition(mount, 2)], [/partitions have no statistics/]);
    });
  });

  it("are none without a table, whatever the disk contains, and none can be made", async () => {
    const path = await makeDisk(undefined);
    await qemuIo(path, "qcow2", ["write -P 0x55 0 1M"]);
    await mounted([path], {}, async (mount) => {
      expect(await names(mount)).toEqual([]);
      const { stderr } = await attempt("touch", [partition(mount, 1)]);
      expect(stderr).toMatch(/Operation not permitted|Permission denied/);
    });
  });

  it("cannot be written to in a read-only mount", async () => {
    const path = await makeDisk(TWO);
    await mounted([path], { args: ["-r"] }, async (mount) => {
      const write = ["if=/dev/zero", `of=${partition(mount, 1)}`, "count=1", "conv=notrunc"];
      expect((await attempt("dd", write)).stderr).toMatch(/Read-only file system/);
      await run("cmp", ["-n", "4096", partition(mount, 1), "/dev/zero"]);
    });
  });

  it.skipIf(ordinaryUserObstacle() !== undefined)(
    "hold file systems that an ordinary user makes, fills and checks (needs root, to become one)",
    async () => {
      const path = await makeDisk(TWO);
      const identity = ORDINARY_USER;
      const tree = await makeScratch("tree");
      await makeFileTree(tree, new Random("partitions"));
      await mounted([path], { identity }, async (mount) => {
        const first = partition(mount, 1);
        const second = partition(mount, 2);
        await run("mkfs.ext4", ["-q", "-F", "-d", "/usr/share/doc/e2fsprogs", first], { identity });
        const write = `write ${join(tree, "noise-100000")} noise`;
        await run("debugfs", ["-w", "-R", write, first], { identity });
        await run("fsck.ext4", ["-f", "-n", first], { identity });
        const out = join(directory, "noise");
        await run("debugfs", ["-R", `dump noise ${out}`, first], { identity });
        await run("cmp", [out, join(tree, "noise-100000")]);
        await run("mkfs.vfat", [second], { identity });
        await run("mcopy", ["-s", "-i", second, join(tree, "many"), "::"], { identity });
        await run("fsck.vfat", ["-n", second], { identity });
        await mkdir(join(directory, "out"), { recursive: true });
        await run("chmod", ["777", join(directory, "out")]);
        await run("mcopy", ["-s", "-n", "-i", second, "::many", join(directory, "out")], {
          identity,
        });
        await run("diff", ["-r", join(directory, "out/many"), join(tree, "many")]);
      });
      await expectClean(path);
      await rm(tree, { recursive: true });
    },
  );

  it.skipIf(!IS_ROOT)(
    "can be mounted with fuse2fs (needs root: to be sure of /dev/fuse)",
    async () => {
      const path = await makeDisk(TWO);
      await mounted([path], {}, async (mount) => {
        const first = partition(mount, 1);
        await run("mkfs.ext4", ["-q", "-F", first]);
        const target = await makeScratch("fuse2fs");
        await run("fuse2fs", ["-o", "fakeroot", first, target]);
        try {
          await run("cp", ["-a", "/usr/share/doc/e2fsprogs", target]);
          await run("diff", ["-r", join(target, "e2fsprogs"), "/usr/share/doc/e2fsprogs"]);
        } finally {
          await run("fusermount3", ["-u", target]);
        }
        await until("fuse2fs has closed it", async () => {
          return (await attempt("fsck.ext4", ["-f", "-n", first])).status === 0;
        });
        await rm(target, { recursive: true });
      });
      await expectClean(path);
    },
  );

  describe("and the device show the same bytes", () => {
    const fill = (value: number, length = 8192): Buffer => Buffer.alloc(length, value);

    /** Opens, reads, closes: as another program would. */
    async function readAt(file: string, offset: number, length = 8192): Promise<Buffer> {
      const handle = await open(file, "r");
      try {
        return (await handle.read(Buffer.alloc(length), 0, length, offset)).buffer;
      } finally {
        await handle.close();
      }
    }

    async function writeAt(file: string, offset: number, bytes: Buffer): Promise<void> {
      const handle = await open(file, "r+");
      try {
        await handle.write(bytes, 0, bytes.length, offset);
      } finally {
        await handle.close();
      }
    }

    it("after a close and an open, whichever was cached before, again and again", async () => {
      const path = await makeDisk(TWO);
      await mounted([path], {}, async (mount) => {
        const device = mount.device(path);
        const first = partition(mount, 1);
        for (let round = 1; round < 20; round++) {
          const at = (round % 5) * 4096 + 100;
          await writeAt(first, at, fill(round));
          expect(await readAt(device, START_OF_FIRST + at)).toEqual(fill(round));
          await writeAt(device, START_OF_FIRST + at, fill(round + 100));
          expect(await readAt(first, at)).toEqual(fill(round + 100));
          expect(await readAt(device, START_OF_FIRST + at)).toEqual(fill(round + 100));
        }
      });
    });

    it("also while both are open: a partition never shows what is old", async () => {
      const path = await makeDisk(TWO);
      await mounted([path], {}, async (mount) => {
        const handles: FileHandle[] = [];
        try {
          for (const file of [mount.device(path), partition(mount, 2)]) {
            handles.push(await open(file, "r+"));
          }
          const [device, second] = handles;
          for (let round = 1; round < 20; round++) {
            await second?.read(Buffer.alloc(8192), 0, 8192, 4096);
            await device?.write(fill(round), 0, 8192, START_OF_SECOND + 4096);
            const read = await second?.read(Buffer.alloc(8192), 0, 8192, 4096);
            expect(read?.buffer).toEqual(fill(round));
          }
        } finally {
          for (const handle of handles) await handle.close();
        }
      });
    });

    itNeeds("fallocate")("after a punched hole", async () => {
      const path = await makeDisk(TWO);
      await mounted([path], {}, async (mount) => {
        const device = mount.device(path);
        const first = partition(mount, 1);
        await writeAt(device, START_OF_FIRST, fill(7, MIB));
        await run("fallocate", ["-p", "-o", "65536", "-l", "131072", first]);
        const hole = await readAt(device, START_OF_FIRST + 65536, 131072);
        expect(hole.equals(fill(0, 131072))).toBe(true);
        await run("fallocate", ["-z", "-o", String(START_OF_FIRST), "-l", "65536", device]);
        expect((await readAt(first, 0, 65536)).equals(fill(0, 65536))).toBe(true);
        expect((await readAt(first, 196608, 8192))[0]).toBe(7);
      });
      await expectClean(path);
    });

    it("through O_DIRECT and mmap", async () => {
      const path = await makeDisk(TWO);
      await mounted([path], {}, async (mount) => {
        const noise = join(directory, "noise.bin");
        await writeFile(noise, new Random("direct").bytes(MIB));
        const write = [`if=${noise}`, `of=${partition(mount, 1)}`, "bs=64k", "conv=notrunc"];
        await run("dd", [...write, "oflag=direct", "status=none"]);
        const window = ["-i", `${START_OF_FIRST}:0`, "-n", String(MIB)];
        await run("cmp", [...window, mount.device(path), noise]);
        // grep maps what it reads; qemu-io reads with O_DIRECT.
        const read = `read -P 0 ${MIB} 64k`;
        await run("qemu-io", ["-n", "-f", "raw", "-c", read, partition(mount, 1)]);
        await run("cmp", ["-n", String(MIB), partition(mount, 1), noise]);
      });
    });
  });

  it("keep their size, and what lies around them, whatever is copied onto one", async () => {
    const path = await makeDisk(TWO);
    const device = (mount: Mount): string => mount.device(path);
    const source = join(directory, "source");
    await run("truncate", ["-s", "8M", source]);
    await run("dd", ["if=/dev/urandom", `of=${source}`, "bs=1M", "seek=5", "count=1"]);
    await mounted([path], {}, async (mount) => {
      await run("dd", ["if=/dev/urandom", `of=${device(mount)}`, "bs=1M", "count=40", "seek=1"]);
      await run("sync", [device(mount)]);
      const whole = await readFile(device(mount));
      await run("cp", ["--sparse=always", source, partition(mount, 2)]);
      const now = await readFile(device(mount));
      const wanted = Buffer.from(whole);
      (await readFile(source)).copy(wanted, START_OF_SECOND);
      expect(now.equals(wanted)).toBe(true);
      const long = ["if=/dev/zero", `of=${partition(mount, 2)}`, "bs=1M", "count=30"];
      expect((await attempt("dd", long)).stderr).toMatch(/No space left on device/);
      const behind = (await readFile(device(mount))).subarray(41 * MIB);
      expect(behind.equals(whole.subarray(41 * MIB))).toBe(true);
      expect((await attempt("truncate", ["-s", "1M", partition(mount, 2)])).status).not.toBe(0);
      const { stdout } = await run("stat", ["-c", "%s", partition(mount, 2)]);
      expect(stdout).toBe(`${24 * MIB}\n`);
    });
    await expectClean(path);
  });

  itNeeds("seek")("say where their holes are, as the device does", async () => {
    const path = await makeDisk(TWO);
    await mounted([path], {}, async (mount) => {
      const noise = ["if=/dev/urandom", `of=${partition(mount, 2)}`, "bs=1M", "conv=notrunc"];
      await run("dd", [...noise, "seek=3", "count=2"]);
      const map = await run("qemu-img", [
        ...["map", "--output", "json", "-f", "raw"],
        partition(mount, 2),
      ]);
      const data = JSON.parse(map.stdout).filter((run: { data: boolean }) => run.data);
      expect(data).toMatchObject([{ start: 3 * MIB, length: 2 * MIB }]);
    });
  });

  it("follow a table that is changed, while who has one open keeps what he has", async () => {
    const path = await makeDisk(TWO);
    await mounted([path], {}, async (mount) => {
      const device = mount.device(path);
      const handle = await open(partition(mount, 2), "r+");
      try {
        await handle.write(Buffer.alloc(4096, 0x42), 0, 4096, 0);
        const script = "label: dos\n1: size=8M\n2: size=20M, type=5\n5: size=4M\n6: size=4M\n";
        await run("sfdisk", ["--quiet", "--force", device], { input: script });
        expect(await names(mount)).toEqual(["1.raw", "5.raw", "6.raw"]);
        expect((await run("stat", ["-c", "%s", partition(mount, 1)])).stdout).toBe(`${8 * MIB}\n`);
        expect((await attempt("stat", [partition(mount, 2)])).stderr).toMatch(/No such file/);
        const { buffer } = await handle.read(Buffer.alloc(4096), 0, 4096, 0);
        expect(buffer).toEqual(Buffer.alloc(4096, 0x42));
        await handle.write(Buffer.alloc(4096, 0x43), 0, 4096, 4096);
        const again = await attempt("cat", [`/proc/${process.pid}/fd/${handle.fd}`]);
        expect(again.stderr).toMatch(
          transportHas("stale-files") ? /Stale file handle/ : /No such file/,
        );
        const seen = await run(
          "cmp",
          [...["-i", `${START_OF_SECOND + 4096}:0`, "-n", "4096"], ...[device, "-"]],
          { input: "C".repeat(4096) },
        );
        expect(seen.status).toBe(0);
      } finally {
        await handle.close();
      }
      await run("sfdisk", ["--quiet", "--force", device], { input: TWO });
      expect(await names(mount)).toEqual(["1.raw", "2.raw"]);
      await run("cmp", ["-n", "4096", partition(mount, 2), "-"], {
        input: "B".repeat(4096),
      });
    });
    await expectClean(path);
  });

  itMainly("can be given other places a thousand times", async () => {
    const path = await makeDisk(undefined);
    await mounted([path], { timeoutMs: 120_000 }, async (mount) => {
      const handle = await open(mount.device(path), "r+");
      try {
        const table = Buffer.alloc(512);
        table.writeUInt16LE(0xaa55, 510);
        table.writeUInt8(0x83, 446 + 4);
        for (let round = 1; round <= 1100; round++) {
          table.writeUInt32LE(round, 446 + 8);
          table.writeUInt32LE(round * 2, 446 + 12);
          await handle.write(table, 0, 512, 0);
          expect((await stat(partition(mount, 1))).size).toBe(round * 1024);
        }
      } finally {
        await handle.close();
      }
    });
  });

  it("can be used by many while tables of all kinds come and go", async () => {
    const path = await makeDisk(undefined);
    const tables: Buffer[] = [Buffer.alloc(64 * 512)];
    for (const script of [TWO, "label: dos\n,8M,L\n,20M,E\n,4M,L\n", "label: gpt\n"]) {
      await mounted([path], {}, async (mount) => {
        await run("sfdisk", ["--quiet", "--force", mount.device(path)], { input: script });
        tables.push((await readFile(mount.device(path))).subarray(0, 64 * 512));
      });
    }
    // libuv has no name for ESTALE. Where requests are about paths, a partition that got shorter has an end too soon.
    const expected = transportHas("stale-files") ? /ENOENT|error -116/ : /ENOENT|ENOSPC/;
    await mounted([path], { timeoutMs: 120_000 }, async (mount) => {
      const use = async (random: Random): Promise<void> => {
        for (const name of await names(mount)) {
          const handle = await open(join(mount.mountPoint, "disk.partitions", name), "r+");
          try {
            const { size } = await handle.stat();
            expect(size % 512).toBe(0);
            await handle.write(random.bytes(512), 0, 512, size - 512);
          } finally {
            await handle.close();
          }
        }
      };
      const user = async (random: Random): Promise<void> => {
        const device = await open(mount.device(path), "r+");
        try {
          for (let round = 0; round < 60; round++) {
            if (round % 3 === 0) {
              const table = Buffer.from(tables[random.below(tables.length)] ?? []);
              if (random.below(2) === 0) table[random.below(table.length)] = random.below(256);
              await device.write(table, 0, table.length, 0);
            }
            // What has just been there may be gone.
            await use(random).catch((error: unknown) => expect(String(error)).toMatch(expected));
          }
        } finally {
          await device.close();
        }
      };
      await Promise.all(Array.from({ length: 4 }, (_, n) => user(new Random(`user ${n}`))));
      expect(mount.daemonPids()).toHaveLength(1);
      expect(mount.isMounted()).toBe(true);
    });
    await expectClean(path);
  });

  it.skipIf(!IS_ROOT)("carry loop devices (needs root)", async () => {
    const path = await makeDisk(TWO);
    await mounted([path], {}, async (mount) => {
      await withLoop(partition(mount, 1), ["--direct-io=on"], async (loop) => {
        await run("mkfs.ext4", ["-q", "-F", loop]);
        await run("fsck.ext4", ["-f", "-n", loop]);
      });
      await run("fsck.ext4", ["-f", "-n", partition(mount, 1)]);
    });
    await expectClean(path);
  });
});
