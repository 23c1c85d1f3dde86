// Hosts that fail a writer: no space, a limit of the file size, a disk with errors. Nothing acknowledged is lost.

import { mkdir, open, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { type FsxSession, runFsx } from "../support/fsx-run.ts";
import { withLoop } from "../support/loop.ts";
import { mounted } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { convertToRaw, createImage, type ImageFormat } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { casesOfTransport, itMainly, itNeeds, itOnce } from "../support/transport.ts";
import { attemptTsimgfs, expectRefusal, refusalOf, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean, expectDisk, expectOrdered } from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;
const DISK_SIZE = 32 * MIB;
const BLOCK = 48 * 1024;

/** Error messages in English. */
const ENGLISH = { LC_ALL: "C" };

const ALL_KINDS: readonly {
  readonly name: string;
  readonly format?: ImageFormat;
  readonly options: Readonly<Record<string, string | number>>;
}[] = [
  { name: "v3", options: {} },
  { name: "clusters of 4 KiB", options: { cluster_size: 4096 } },
  { name: "QED", format: "qed", options: { cluster_size: 16384 } },
  ...byScale(
    [],
    [
      { name: "v2", options: { compat: "0.10" } },
      { name: "extended L2", options: { extended_l2: "on" } },
      { name: "clusters of 512 B", options: { cluster_size: 512 } },
      { name: "clusters of 2 MiB", options: { cluster_size: 2 * MIB } },
      { name: "refcounts of one bit", options: { refcount_bits: 1 } },
      { name: "lazy refcounts", options: { lazy_refcounts: "on" } },
    ],
  ),
];

const KINDS = casesOfTransport("host limits", ALL_KINDS, 1);

/** Writes blocks of a file to the device until that fails; returns how many bytes were acknowledged. */
async function writeUntilFull(device: string, source: Buffer, code: string): Promise<number> {
  const file = await open(device, "r+");
  let done = 0;
  try {
    while (done < source.length) {
      const length = Math.min(BLOCK, source.length - done);
      const { bytesWritten } = await file.write(source, done, length, done);
      done += bytesWritten;
    }
  } catch (error) {
    expect(error).toMatchObject({ code });
  } finally {
    await file.close();
  }
  return done;
}

/** Expects the first bytes of a file. */
async function expectHead(path: string, wanted: Buffer, length: number): Promise<void> {
  const file = await open(path, "r");
  const bytes = Buffer.alloc(length);
  await file.read(bytes, 0, length, 0);
  await file.close();
  const different = bytes.findIndex((byte, index) => byte !== wanted[index]);
  expect(different, `first different byte of ${length} in ${path}`).toBe(-1);
}

describe.skipIf(!IS_ROOT)("a host without space (needs root)", () => {
  it.each(KINDS)(
    "fails writers, keeps what it took, and goes on later: $name",
    async ({ name, format = "qcow2", options }) => {
      await withTmpfs(12 * MIB, async (tmpfs) => {
        const source = new Random(`full ${name}`).bytes(DISK_SIZE);
        const path = join(tmpfs.directory, `disk.${format}`);
        await createImage(path, format, { size: DISK_SIZE, options });
        await mounted([path], {}, async (mount) => {
          const device = mount.device(path);
          const done = await writeUntilFull(device, source, "ENOSPC");
          expect(done).toBeGreaterThan(4 * MIB);
          expect(done).toBeLessThan(DISK_SIZE);
          await run("dd", [`if=${device}`, "iflag=nocache", "count=0", "status=none"]);
          await expectHead(device, source, done);
          await tmpfs.resize(200 * MIB);
          expect(await writeUntilFull(device, source, "none")).toBe(DISK_SIZE);
          await run("sync", [device]);
        });
        await expectOrdered(path, format);
        const wanted = join(tmpfs.directory, "wanted");
        await writeFile(wanted, source);
        await expectDisk(path, format, wanted);
      });
    },
  );

  itOnce("is of no use for a file above 2^53 - 1 bytes, and one line says so", async () => {
    await withTmpfs(MIB, async (tmpfs) => {
      const path = join(tmpfs.directory, "long.raw");
      await run("truncate", ["-s", "9P", path]);
      const target = join(tmpfs.directory, "new");
      const place = join(tmpfs.directory, "place");
      await mkdir(place);
      for (const args of [
        ["info", path],
        ["convert", "-O", "qcow2", path, target],
        ["mount", path, place],
      ]) {
        await expectRefusal(args, [/long\.raw: its length is above the limit of 2\^53 - 1$/]);
      }
      await run("truncate", ["-s", String(2 ** 53 - 1), path]);
      await tsimgfs(["info", path]);
    });
  });

  itOnce("stops stream with lines that say why, and keeps the disk as it is", async () => {
    await withTmpfs(12 * MIB, async (tmpfs) => {
      await withScratch("stream-full", async (directory) => {
        const base = join(directory, "base.raw");
        await writeFile(base, new Random("stream full").bytes(DISK_SIZE));
        const image = join(tmpfs.directory, "top.qcow2");
        await createImage(image, "qcow2", { backing: { file: base, format: "raw" } });
        const { status, stderr } = await attemptTsimgfs(["stream", image]);
        expect(status).toBe(1);
        expect(stderr).toMatch(/no space is left on its file system/);
        expect(stderr).toMatch(/^(tsimgfs: [^\n]+\n)+$/);
        expect(stderr).not.toMatch(/Error:/);
        await expectDisk(image, "qcow2", base);
      });
    });
  });

  itMainly.each(KINDS)(
    "leaves an image that is clean when the mount ends then: $name",
    async ({ name, format = "qcow2", options }) => {
      await withTmpfs(12 * MIB, async (tmpfs) => {
        const source = new Random(`full at the end ${name}`).bytes(DISK_SIZE);
        const path = join(tmpfs.directory, `disk.${format}`);
        await createImage(path, format, { size: DISK_SIZE, options });
        const done = await mounted([path], {}, (mount) =>
          writeUntilFull(mount.device(path), source, "ENOSPC"),
        );
        await expectOrdered(path, format);
        await withScratch("full", async (directory) => {
          const copy = join(directory, "copy");
          await convertToRaw(path, format, copy);
          await expectHead(copy, source, done);
        });
      });
    },
  );

  it.each(KINDS)(
    "does not keep an image from being put in order: $name",
    async ({ name, format = "qcow2", options }) => {
      await withTmpfs(12 * MIB, async (tmpfs) => {
        const source = new Random(`full and killed ${name}`).bytes(DISK_SIZE);
        const path = join(tmpfs.directory, `disk.${format}`);
        await createImage(path, format, { size: DISK_SIZE, options });
        const done = await mounted([path], {}, async (mount) => {
          const bytes = await writeUntilFull(mount.device(path), source, "ENOSPC");
          process.kill(mount.daemonPid(), "SIGKILL");
          return bytes;
        });
        const { verdict, output } = await checkImage(path, format);
        expect(verdict, output).not.toBe("corrupt");
        await mounted([path], {}, (mount) => expectHead(mount.device(path), source, done));
        await expectOrdered(path, format);
      });
    },
  );

  itMainly.each(KINDS)(
    "does not disturb readers and other writers: $name",
    async ({ name, format = "qcow2", options }) => {
      // An empty image takes three clusters of its file system.
      const empty = 3 * Number(options["cluster_size"] ?? 0);
      await withTmpfs(5 * MIB + empty, async (tmpfs) => {
        await withScratch("full", async (directory) => {
          const random = new Random(`tight ${name}`);
          const path = join(tmpfs.directory, `disk.${format}`);
          await createImage(path, format, { size: DISK_SIZE, options });
          const expected = join(directory, "expected");
          await convertToRaw(path, format, expected);
          await mounted([path], {}, async (mount) => {
            const session: FsxSession = {
              device: mount.device(path),
              expected,
              size: DISK_SIZE,
              unit: 65536,
              maxLength: 300_000,
              access: "direct",
              mappings: false,
              processes: 2,
              end: { operations: byScale(250, 1500) },
            };
            const reports = await runFsx(random, { ...session, tolerated: ["ENOSPC"] });
            expect(reports.some(({ failures }) => failures > 0)).toBe(true);
            await tmpfs.resize(200 * MIB);
            await runFsx(random, session);
          });
          await expectOrdered(path, format);
          await expectDisk(path, format, expected);
        });
      });
    },
  );

  itNeeds("fallocate").each([
    { name: "v3", format: "qcow2", options: {} },
    { name: "v2", format: "qcow2", options: { compat: "0.10" } },
    { name: "extended L2", format: "qcow2", options: { extended_l2: "on" } },
    { name: "raw", format: "raw", options: {} },
    { name: "QED", format: "qed", options: {} },
  ] as const)("does not fail writers of what was preallocated: $name", async (kind) => {
    await withTmpfs(24 * MIB, async (tmpfs) => {
      const { format, options } = kind;
      const path = join(tmpfs.directory, `disk.${format}`);
      const source = new Random(`preallocated ${kind.name}`).bytes(8 * MIB);
      await createImage(path, format, { size: 16 * MIB, options });
      await mounted([path], {}, async (mount) => {
        const device = mount.device(path);
        await run("fallocate", ["-l", String(source.length), device]);
        await run("cmp", ["-n", String(source.length), device, "/dev/zero"]);
        const filler = join(tmpfs.directory, "filler");
        expect((await attempt("dd", ["if=/dev/zero", `of=${filler}`])).status).toBe(1);
        expect(await writeUntilFull(device, source, "none")).toBe(source.length);
        const tooMuch = ["-o", String(8 * MIB), "-l", String(8 * MIB), device];
        const { stderr } = await attempt("fallocate", tooMuch, { env: ENGLISH });
        expect(stderr).toMatch(/No space left/);
        await expectHead(device, source, source.length);
        await run("rm", [filler]);
      });
      await expectClean(path, format);
    });
  });

  itMainly("fails writers to raw images too", async () => {
    await withTmpfs(8 * MIB, async (tmpfs) => {
      const source = new Random("full raw").bytes(DISK_SIZE);
      const path = join(tmpfs.directory, "disk.raw");
      await createImage(path, "raw", { size: DISK_SIZE });
      await mounted([path], {}, async (mount) => {
        const done = await writeUntilFull(mount.device(path), source, "ENOSPC");
        await expectHead(mount.device(path), source, done);
        await tmpfs.resize(64 * MIB);
        expect(await writeUntilFull(mount.device(path), source, "none")).toBe(DISK_SIZE);
      });
      await expectHead(path, source, DISK_SIZE);
    });
  });
});

describe("a limit of the file size", () => {
  it("fails writers and does not end the daemon", async () => {
    await withScratch("limit", async (directory) => {
      const source = new Random("file size limit").bytes(DISK_SIZE);
      const path = join(directory, "disk.qcow2");
      await createImage(path, "qcow2", { size: DISK_SIZE });
      await mounted([path], {}, async (mount) => {
        const device = mount.device(path);
        const pid = String(mount.daemonPid());
        await run("prlimit", ["--pid", pid, `--fsize=${8 * MIB}:unlimited`]);
        const { status, stderr } = await attempt(
          "dd",
          ["if=/dev/urandom", `of=${device}`, "bs=64k", "conv=notrunc"],
          { env: ENGLISH },
        );
        expect(status).toBe(1);
        expect(stderr).toMatch(/File too large|No space left/);
        expect(mount.daemonPids()).toHaveLength(1);
        await run("prlimit", ["--pid", pid, "--fsize=unlimited"]);
        expect(await writeUntilFull(device, source, "none")).toBe(DISK_SIZE);
      });
      await expectClean(path);
      const wanted = join(directory, "wanted");
      await writeFile(wanted, source);
      await expectDisk(path, "qcow2", wanted);
    });
  });
});

describe.skipIf(!IS_ROOT)("an image on a block device (needs root)", () => {
  /** Calls `body` with a loop device on a sparse file. */
  async function withBlockDevice<T>(
    directory: string,
    size: number,
    body: (device: string) => Promise<T>,
  ): Promise<T> {
    const file = join(directory, "block-device");
    await rm(file, { force: true });
    await run("truncate", ["-s", String(size), file]);
    return await withLoop(file, [], body);
  }

  itMainly.each([
    { format: "qcow2", diskSize: DISK_SIZE, blockSize: 5 * MIB, tolerated: ["ENOSPC"] },
    { format: "raw", diskSize: 16 * MIB, blockSize: 16 * MIB, tolerated: [] },
  ] as const)("is written like one in a file: $format", async (image) => {
    await withScratch("block", async (directory) => {
      const { format, diskSize, blockSize, tolerated } = image;
      const random = new Random(`block device ${format}`);
      await withBlockDevice(directory, blockSize, async (block) => {
        if (format === "qcow2") {
          await run("qemu-img", ["create", "-q", "-f", "qcow2", block, String(diskSize)]);
        }
        const expected = join(directory, "expected");
        await run("truncate", ["-s", String(diskSize), expected]);
        await mounted([block], { args: ["--format", format] }, async (mount) => {
          const reports = await runFsx(random, {
            device: mount.device(block),
            expected,
            size: diskSize,
            unit: 65536,
            maxLength: 300_000,
            access: "buffered",
            // The page cache keeps what was mapped and written even if the device did not take it.
            mappings: tolerated.length === 0,
            processes: 2,
            end: { operations: 250 },
            tolerated,
          });
          const failures = reports.reduce((sum, report) => sum + report.failures, 0);
          // The disk of the qcow2 image is larger than the block device.
          expect(failures > 0).toBe(tolerated.length > 0);
        });
        await expectClean(block, format);
        await expectDisk(block, format, expected);
      });
    });
  });

  it("whose disk fails tells so at fsync", async () => {
    await withTmpfs(4 * MIB, async (tmpfs) => {
      await withBlockDevice(tmpfs.directory, 64 * MIB, async (block) => {
        const args = ["--format", "raw"];
        await mounted([block], { args }, async (mount) => {
          const device = mount.device(block);
          const dd = ["if=/dev/urandom", `of=${device}`, "bs=1M", "count=16"];
          const { status, stderr } = await attempt("dd", [...dd, "conv=notrunc,fsync"], {
            env: ENGLISH,
          });
          expect(status).toBe(1);
          expect(stderr).toMatch(/Input\/output error|No space left/);
          expect(mount.daemonPids()).toHaveLength(1);
          await tmpfs.resize(128 * MIB);
          const noise = join(tmpfs.directory, "noise");
          await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=1M", "count=8"]);
          await run("dd", [`if=${noise}`, `of=${device}`, "bs=1M", "conv=notrunc,fsync"]);
          const { size } = await stat(noise);
          await run("truncate", ["-s", String(64 * MIB), noise]);
          await run("cmp", ["-n", String(size), device, noise]);
          await expectSameBytes(block, device, "block device and device");
        });
      });
    });
  });
});

const NESTED_KINDS = casesOfTransport(
  "nested",
  [
    ["v3", "qcow2", { cluster_size: 65536 }],
    ["small clusters", "qcow2", { cluster_size: 512 }],
    ["QED", "qed", { cluster_size: 16384 }],
  ] as const,
  1,
);

describe("a device of another mount as the image", () => {
  it.each(NESTED_KINDS)(
    "is filled to its end, and closed in order: %s",
    async (name, format, options) => {
      await withScratch("nested", async (directory) => {
        const outer = join(directory, "outer.qcow2");
        const inner = join(directory, "inner");
        const copy = join(directory, "copy");
        const source = new Random(`nested ${name}`).bytes(16 * MIB);
        await createImage(outer, "qcow2", { size: 4 * MIB });
        await createImage(inner, format, { size: 16 * MIB, options });
        await mounted([outer], {}, async (host) => {
          const image = host.device(outer);
          await run("dd", [`if=${inner}`, `of=${image}`, "conv=notrunc", "status=none"]);
          // Ends as it should although the file cannot be cut.
          const little = await mounted([image], { args: ["--format", format] }, async (mount) => {
            const device = mount.device(image);
            const bytes = source.subarray(0, 100_000);
            await writeFile(device, bytes, { flag: "r+" });
            return bytes.length;
          });
          expect((await stat(image)).size).toBe(4 * MIB);
          expect((await checkImage(image, format)).verdict).not.toBe("corrupt");
          await convertToRaw(image, format, copy);
          await expectHead(copy, source, little);
          const done = await mounted([image], { args: ["--format", format] }, (mount) =>
            writeUntilFull(mount.device(image), source, "ENOSPC"),
          );
          expect(done).toBeGreaterThan(2 * MIB);
          expect((await stat(image)).size).toBe(4 * MIB);
          const { verdict, output } = await checkImage(image, format);
          expect(verdict, output).not.toBe("corrupt");
          await convertToRaw(image, format, copy);
          await expectHead(copy, source, done);
        });
      });
    },
  );

  itOnce("is a disk that convert and dd write a raw image to", async () => {
    await withScratch("nested-raw", async (directory) => {
      const outer = join(directory, "outer.qcow2");
      const source = join(directory, "source");
      const bytes = new Random("nested raw").bytes(MIB);
      await writeFile(source, bytes);
      await createImage(outer, "qcow2", { size: 2 * MIB });
      await mounted([outer], {}, async (host) => {
        const device = host.device(outer);
        await tsimgfs(["convert", "-f", "raw", "-O", "raw", source, device]);
        await expectHead(device, bytes, MIB);
        await tsimgfs(["dd", "-f", "raw", `if=${source}`, `of=${device}`, "bs=64k"]);
        await expectHead(device, bytes, MIB);
        expect((await stat(device)).size).toBe(2 * MIB);
        const long = join(directory, "long");
        await run("truncate", ["-s", "3M", long]);
        const refused = await attemptTsimgfs(["convert", "-f", "raw", "-O", "raw", long, device]);
        expect(refusalOf(refused)).toMatch(/the image needs 3145728 bytes, the device has 2097152/);
        await expectHead(device, bytes, MIB);
      });
      await expectClean(outer);
    });
  });
});
