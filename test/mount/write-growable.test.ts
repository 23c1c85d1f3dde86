// Devices that grow: truncate(2), writes and allocation past the end, with --growable alone.

import { stat } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { asRecord } from "../support/json.ts";
import { mounted } from "../support/mounted.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { casesOfTransport, itMainly, transportHas } from "../support/transport.ts";
import {
  expectClean,
  type WriteImage,
  type WriteKindName,
  withWriteImage,
  writeKind,
} from "../support/write-images.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const GROWABLE = { args: ["--growable"] } as const;

const KINDS: readonly WriteKindName[] = [
  "v3",
  "extended-l2",
  "snapshot",
  "data-file-raw",
  "over-qcow2",
  "raw",
  ...byScale([], [
    "v2",
    "clusters-512",
    "clusters-2m",
    "refcount-1",
    "bitmap",
    "data-file",
    "v2-over-qed",
  ] as const),
];

/** Those that only grow. */
const GROWING_KINDS: readonly WriteKindName[] = ["qed", "qed-16k-over-qcow2"];

const GROWING_CASES = casesOfTransport("growing", [...KINDS, ...GROWING_KINDS], 2);
const SHRINKING_CASES = casesOfTransport("shrinking", KINDS, 1);

/** Runs a command on the device and on the file that says what it must contain. */
async function both(
  image: WriteImage,
  device: string,
  command: (target: string) => readonly [string, ...string[]],
): Promise<void> {
  for (const target of [device, image.expected]) {
    const [program, ...args] = command(target);
    await run(program, args);
  }
  await expectSameBytes(device, image.expected, command("DEVICE").join(" "));
}

/** Size of the disk of an image by qemu-img, bytes. */
async function virtualSize(image: WriteImage): Promise<unknown> {
  return asRecord(await imageInfo(["-f", image.kind.format, image.path]))["virtual-size"];
}

describe.each(GROWING_CASES)("a growable device of kind %s", (name) => {
  it("grows by truncate, by writes past its end, by append and by fallocate", async () => {
    await withWriteImage(writeKind(name), 3 * MIB, async (image) => {
      const { size, directory } = image;
      const noise = join(directory, "noise");
      await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=512", "count=700"]);
      await mounted([image.path], GROWABLE, async (mount) => {
        const device = mount.device(image.path);
        const dd = (more: readonly string[]) => (target: string) =>
          ["dd", `if=${noise}`, `of=${target}`, "status=none", "bs=70000", ...more] as const;
        const seek = (offset: number): string[] => [`seek=${offset}`, "conv=notrunc"];
        await both(image, device, (target) => ["truncate", "-s", String(size + 512), target]);
        await both(image, device, dd([...seek(size), "oflag=seek_bytes"]));
        await both(image, device, dd([...seek(size + 2 * MIB), "oflag=seek_bytes"]));
        await both(image, device, dd(["oflag=append", "conv=notrunc"]));
        await both(image, device, (target) => ["truncate", "-s", "+1M", target]);
        if (!transportHas("fallocate")) return;
        const length = (await stat(image.expected)).size + 512_000;
        await both(image, device, (target) => ["fallocate", "-l", String(length), target]);
        const zeros = ["-o", String(length - 137 * 512), "-l", String(400 * 512)];
        await both(image, device, (target) => ["fallocate", "-z", ...zeros, target]);
      });
      expect(await virtualSize(image)).toBe((await stat(image.expected)).size);
      await image.expectIntact();
      await mounted([image.path], {}, async (mount) => {
        await expectSameBytes(mount.device(image.path), image.expected, "mounted again");
      });
    });
  });
});

describe.each(SHRINKING_CASES)("a growable device of kind %s", (name) => {
  it("shrinks by truncate, and shows nothing of it when it grows again", async () => {
    await withWriteImage(writeKind(name), 3 * MIB, async (image) => {
      const noise = join(image.directory, "noise");
      await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=1M", "count=3"]);
      await mounted([image.path], GROWABLE, async (mount) => {
        const device = mount.device(image.path);
        const dd = [`if=${noise}`, "bs=1M", "count=2", "conv=notrunc", "status=none"];
        await both(image, device, (target) => ["dd", ...dd, `of=${target}`]);
        for (const size of ["1000448", "2M", "512", "1536K"]) {
          await both(image, device, (target) => ["truncate", "-s", size, target]);
        }
      });
      expect(await virtualSize(image)).toBe(1.5 * MIB);
      await image.expectIntact();
    });
  });
});

describe("a growable device of a QED image", () => {
  it("does not shrink, and stays as it is", async () => {
    await withWriteImage(writeKind("qed"), 3 * MIB, async (image) => {
      await mounted([image.path], GROWABLE, async (mount) => {
        const device = mount.device(image.path);
        for (const size of ["0", "512", "-512"]) {
          const english = { env: { LC_ALL: "C" } };
          const { status, stderr } = await attempt("truncate", ["-s", size, device], english);
          expect({ status, stderr }).toEqual({
            status: 1,
            stderr: expect.stringMatching(/Operation not supported/),
          });
        }
        expect((await stat(device)).size).toBe(image.size);
        await expectSameBytes(device, image.expected, "not shrunk");
      });
      expect(await virtualSize(image)).toBe(image.size);
      await image.expectIntact();
    });
  });

  it("does not become larger than its tables map", async () => {
    await withScratch("growable", async (directory) => {
      const path = join(directory, "disk.qed");
      await createImage(path, "qed", {
        size: MIB,
        options: { cluster_size: 4096, table_size: 2 },
      });
      await mounted([path], GROWABLE, async (mount) => {
        const device = mount.device(path);
        // 1024 entries of 1024 clusters.
        await run("truncate", ["-s", "4G", device]);
        const english = { env: { LC_ALL: "C" } };
        const { stderr } = await attempt("truncate", ["-s", "4097M", device], english);
        expect(stderr).toMatch(/File too large/);
        expect((await stat(device)).size).toBe(4 * GIB);
      });
      expect(asRecord(await imageInfo([path]))["virtual-size"]).toBe(4 * GIB);
      await expectClean(path, "qed");
    });
  });
});

describe("a growable device", () => {
  it("may become very large", async () => {
    await withScratch("growable", async (directory) => {
      const path = join(directory, "disk.qcow2");
      const noise = join(directory, "noise");
      await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=1M", "count=1"]);
      await createImage(path, "qcow2", { size: MIB, options: { cluster_size: 4096 } });
      await mounted([path], GROWABLE, async (mount) => {
        const device = mount.device(path);
        await run("dd", [`if=${noise}`, `of=${device}`, "bs=1M", "conv=notrunc"]);
        await run("truncate", ["-s", String(500 * GIB), device]);
        const far = [`seek=${499 * 1024}`, "conv=notrunc"];
        await run("dd", [`if=${noise}`, `of=${device}`, "bs=1M", ...far]);
        await run("cmp", ["-n", String(MIB), device, noise]);
        await run("cmp", ["-n", String(MIB), "-i", `${499 * GIB}:0`, device, noise]);
        await run("cmp", ["-n", String(MIB), "-i", `${250 * GIB}:0`, device, "/dev/zero"]);
      });
      await expectClean(path);
      const info = asRecord(await imageInfo([path]));
      expect(info["virtual-size"]).toBe(500 * GIB);
    });
  });

  it("is rounded up in the image to what a qcow2 image can say", async () => {
    await withScratch("growable", async (directory) => {
      const path = join(directory, "disk.qcow2");
      const noise = join(directory, "noise");
      await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=1", "count=3001"]);
      await createImage(path, "qcow2", { size: 0 });
      await mounted([path], GROWABLE, async (mount) => {
        await run("cp", [noise, mount.device(path)]);
        await run("cmp", ["-n", "3001", noise, mount.device(path)]);
      });
      expect(asRecord(await imageInfo([path]))["virtual-size"]).toBe(3072);
      await run("truncate", ["-s", "3072", noise]);
      await run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", path, noise]);
      await expectClean(path);
    });
  });

  itMainly("shows zeros where it has grown over a backing file that is longer", async () => {
    await withScratch("growable", async (directory) => {
      const base = join(directory, "base.qcow2");
      const path = join(directory, "disk.qcow2");
      await createImage(base, "qcow2", { size: 3 * MIB });
      await qemuIo(base, "qcow2", ["write -q -P 85 0 3M"]);
      await createImage(path, "qcow2", {
        size: MIB + 512,
        backing: { file: base, format: "qcow2" },
      });
      const expected = join(directory, "expected");
      await run("qemu-img", ["convert", "-O", "raw", path, expected]);
      await mounted([path], GROWABLE, async (mount) => {
        const device = mount.device(path);
        await run("truncate", ["-s", "2M", device]);
        await run("truncate", ["-s", "2M", expected]);
        await expectSameBytes(device, expected, "grown");
        const where = ["bs=1k", "seek=2700", "count=1", "conv=notrunc"];
        for (const target of [device, expected]) {
          await run("dd", [`if=${base}`, `of=${target}`, ...where]);
        }
        await expectSameBytes(device, expected, "grown by a write");
      });
      await run("truncate", ["-s", "%512", expected]);
      await run("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", path, expected]);
      await expectClean(path);
    });
  });

  it("still ignores O_TRUNC", async () => {
    await withWriteImage(writeKind("v3"), 2 * MIB, async (image) => {
      const noise = join(image.directory, "noise");
      await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=1k", "count=300"]);
      await mounted([image.path], GROWABLE, async (mount) => {
        await run("cp", [noise, mount.device(image.path)]);
      });
      await run("dd", [`if=${noise}`, `of=${image.expected}`, "bs=1k", "conv=notrunc"]);
      await image.expectIntact();
    });
  });
});
