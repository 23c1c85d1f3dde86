// Writing to devices with the programs people use: cp and dd in all their ways, over images of all kinds.

import { open, stat } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { runFsx } from "../support/fsx-run.ts";
import { type Mount, mounted } from "../support/mounted.ts";
import { qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { casesOfTransport, itMainly, itNeeds, transportHas } from "../support/transport.ts";
import {
  expectClean,
  expectDisk,
  WRITE_KINDS,
  type WriteImage,
  withWriteImage,
  writeKind,
} from "../support/write-images.ts";
import { makeSource, WRITE_STEPS, type WriteStep } from "../support/write-steps.ts";

const MIB = 2 ** 20;
const SIZE = byScale(6, 40) * MIB;

const KINDS = casesOfTransport("copying", WRITE_KINDS, 2);
const FIXED_KINDS = casesOfTransport("fixed size", ["v3", "raw"] as const, 1);

/** Error messages in English. */
const ENGLISH = { LC_ALL: "C" };

/** All steps, in their order, or half of them. */
function pickSteps(random: Random): readonly WriteStep[] {
  return byScale(
    WRITE_STEPS.filter(() => random.below(2) === 0),
    WRITE_STEPS,
  );
}

describe("cp and dd to a device", () => {
  it.each(KINDS)("write what they write to a plain file: $name", async (kind) => {
    await withWriteImage(kind, SIZE, async (image) => {
      const random = new Random(`copying ${kind.name}`);
      const source = await makeSource(image.directory, random);
      await mounted([image.path], {}, async (mount) => {
        const device = mount.device(image.path);
        for (const step of pickSteps(random)) {
          await step.run({ image, device, random, source });
          await expectSameBytes(device, image.expected, `after ${step.name}`);
        }
      });
      await image.expectIntact();
    });
  });
});

/** Mounts an image of a kind, calls `body`, and then expects the image to be intact. */
async function withDevice(
  kind: "v3" | "raw" | "clusters-512",
  body: (device: string, image: WriteImage, mount: Mount) => Promise<void>,
): Promise<void> {
  await withWriteImage(writeKind(kind), SIZE, async (image) => {
    await mounted([image.path], {}, (mount) => body(mount.device(image.path), image, mount));
    await image.expectIntact();
  });
}

describe.each(FIXED_KINDS)("a device has a fixed size (%s)", (kind) => {
  it("takes the part of a write that lies before its end", async () => {
    await withDevice(kind, async (device, image) => {
      const bytes = new Random("part").bytes(10_000);
      const offset = image.size - 3000;
      for (const flags of ["r+", "rs+"]) {
        const file = await open(device, flags);
        const { bytesWritten } = await file.write(bytes, 0, 10_000, offset);
        expect(bytesWritten).toBe(3000);
        await file.close();
      }
      const expected = await open(image.expected, "r+");
      await expected.write(bytes, 0, 3000, offset);
      await expected.close();
      await expectSameBytes(device, image.expected, "after a write across the end");
    });
  });

  it("refuses writes at its end and past it: no space left", async () => {
    await withDevice(kind, async (device, { size, expected }) => {
      for (const offset of [size, size + 1, size + 512, 2 * size, 2 ** 45]) {
        for (const more of ["", ",direct", ",sync"]) {
          const where = [`seek=${offset}`, `oflag=seek_bytes${more}`, "bs=512", "count=1"];
          const args = ["if=/dev/zero", `of=${device}`, ...where, "conv=notrunc"];
          const { status, stderr } = await attempt("dd", args, { env: ENGLISH });
          expect({ status, stderr }, `at ${offset}`).toEqual({
            status: 1,
            stderr: expect.stringMatching(/No space left on device/),
          });
        }
      }
      const append = [`if=${expected}`, `of=${device}`, "count=1", "oflag=append", "conv=notrunc"];
      expect((await attempt("dd", append, { env: ENGLISH })).stderr).toMatch(/No space left/);
      expect((await stat(device)).size).toBe(size);
    });
  });

  itMainly(
    "is filled to its end by a dd that does not end, and by a file that is too long",
    async () => {
      await withDevice(kind, async (device, { size, expected }) => {
        const endless = ["if=/dev/zero", `of=${device}`, "bs=100000", "conv=notrunc"];
        expect((await attempt("dd", endless, { env: ENGLISH })).stderr).toMatch(/No space left/);
        await run("truncate", ["-s", "0", expected]);
        await run("truncate", ["-s", String(size), expected]);
        await expectSameBytes(device, expected, "filled with zeros");

        const long = `${expected}.long`;
        await run("dd", [
          "if=/dev/urandom",
          `of=${long}`,
          `count=${size + 5000}`,
          "iflag=count_bytes",
        ]);
        const { status, stderr } = await attempt("cp", [long, device], { env: ENGLISH });
        expect({ status, stderr }).toEqual({
          status: 1,
          stderr: expect.stringMatching(/No space left/),
        });
        await run("dd", [`if=${long}`, `of=${expected}`, `count=${size}`, "iflag=count_bytes"]);
        await expectSameBytes(device, expected, "filled by cp");
      });
    },
  );

  it("can be truncated to the size it has only", async () => {
    await withDevice(kind, async (device, { size }) => {
      await run("truncate", ["-s", String(size), device]);
      for (const other of [0, 512, size - 512, size + 512, size * 2]) {
        const result = await attempt("truncate", ["-s", String(other), device], { env: ENGLISH });
        expect(result.status).toBe(1);
        expect(result.stderr).toMatch(/Operation not permitted/);
        expect((await stat(device)).size).toBe(size);
      }
      // dd truncates to where it begins to write, unless it is told not to.
      const args = ["if=/dev/zero", `of=${device}`, "seek=1", "count=1"];
      expect((await attempt("dd", args, { env: ENGLISH })).stderr).toMatch(/not permitted/);
    });
  });

  itNeeds("fallocate")("has fallocate(2) for space inside only", async () => {
    await withDevice(kind, async (device, { size }) => {
      await run("fallocate", ["-l", String(size), device]);
      await run("fallocate", ["-n", "-o", "5000", "-l", "100000", device]);
      for (const [offset, length] of [
        [0, size + 1],
        [size, 512],
        [size - 100, 200],
      ]) {
        const args = ["-o", String(offset), "-l", String(length), device];
        const { status, stderr } = await attempt("fallocate", args, { env: ENGLISH });
        expect({ status, stderr }).toEqual({
          status: 1,
          stderr: expect.stringMatching(/No space left/),
        });
      }
      expect((await stat(device)).size).toBe(size);
    });
  });

  it("lets cp -p and touch set times, and nobody change mode, owner or name", async () => {
    await withDevice(kind, async (device, image, mount) => {
      const part = `${image.directory}/part`;
      await run("dd", [`if=${image.expected}`, `of=${part}`, "bs=4k", "count=1"]);
      await run("touch", [device]);
      await run("cp", ["--preserve=timestamps", part, device]);
      for (const [program, ...args] of [
        ["rm", "-f", device],
        ["mv", device, `${mount.mountPoint}/x`],
        ["ln", device, `${mount.mountPoint}/x`],
        ["touch", `${mount.mountPoint}/new`],
        ["mkdir", `${mount.mountPoint}/new`],
        ["dd", "if=/dev/null", `of=${mount.stats(image.path)}`],
      ] as const) {
        expect((await attempt(program, args)).status, `${program} ${args.join(" ")}`).not.toBe(0);
      }
      await expectSameBytes(device, image.expected, "unchanged");
    });
  });
});

describe("writing to a device", () => {
  it("is seen by those who have read and mapped it", async () => {
    await withDevice("v3", async (device, { size, expected, directory }) => {
      const noise = `${directory}/noise`;
      await run("dd", ["if=/dev/urandom", `of=${noise}`, `count=${size}`, "iflag=count_bytes"]);
      await run("cmp", [device, expected]);
      for (const oflag of ["direct", "sync"]) {
        await run("dd", [
          ...[`if=${noise}`, "bs=1M", "seek=5000", "count=700000", "conv=notrunc"],
          ...[`oflag=seek_bytes,${oflag}`, "iflag=count_bytes", `of=${device}`],
        ]);
        await run("dd", [
          ...[`if=${noise}`, "bs=1M", "seek=5000", "count=700000", "conv=notrunc"],
          ...["oflag=seek_bytes", "iflag=count_bytes", `of=${expected}`],
        ]);
        await expectSameBytes(device, expected, `after oflag=${oflag}`);
        if (!transportHas("fallocate")) continue;
        await run("fallocate", ["-p", "-o", "100000", "-l", "70000", device]);
        await run("fallocate", ["-p", "-o", "100000", "-l", "70000", expected]);
        await expectSameBytes(device, expected, "after a punch");
      }
    });
  });

  it("by dd conv=sparse leaves no old data between its blocks", async () => {
    await withDevice("v3", async (device, { expected, directory }) => {
      const source = `${directory}/source`;
      const blocks = { bs: "64k", conv: "notrunc", status: "none" };
      const dd = (more: Readonly<Record<string, string>>): Promise<unknown> =>
        run(
          "dd",
          Object.entries({ ...blocks, ...more }).map(([name, value]) => `${name}=${value}`),
        );
      await dd({ if: "/dev/urandom", of: device, count: "40" });
      await dd({ if: device, of: expected });
      for (const seek of ["3", "7", "20"]) {
        await dd({ if: "/dev/urandom", of: source, count: "2", seek });
      }
      await dd({ if: source, of: device, conv: "sparse" });
      await dd({ if: source, of: expected });
      await expectSameBytes(device, expected, "after dd conv=sparse");
    });
  });

  itMainly("after O_TRUNC does not stop others who write behind it", async () => {
    await withDevice("v3", async (device, { size, expected, directory, clusterSize }) => {
      const random = new Random("beside O_TRUNC");
      const source = `${directory}/source`;
      const head = 2 * MIB;
      await run("dd", ["if=/dev/urandom", `of=${source}`, "bs=1M", "count=2"]);
      await run("fallocate", ["-p", "-o", "70000", "-l", "1000000", source]);
      let isDone = false;
      const copying = async (): Promise<void> => {
        while (!isDone) {
          await run("cp", [source, device]);
        }
      };
      let copies: Promise<void> = Promise.resolve();
      await runFsx(
        random,
        {
          device,
          expected,
          from: head,
          size,
          unit: clusterSize,
          maxLength: 100_000,
          // Through the cache they would meet the end of the file now and then: after O_TRUNC the kernel
          // takes a file for empty until it has asked for the size again.
          access: "direct",
          mappings: false,
          processes: 2,
          end: { operations: byScale(300, 3000) },
        },
        async () => {
          copies = copying();
        },
      ).finally(() => {
        isDone = true;
      });
      await copies;
      await run("dd", [`if=${source}`, `of=${expected}`, "conv=notrunc"]);
      await expectSameBytes(device, expected, "after copies and others' writes");
    });
  });

  it("by qemu-img convert and qemu-img dd leaves what they read", async () => {
    await withDevice("v3", async (device, { size, expected, directory }) => {
      const source = `${directory}/source.qcow2`;
      await run("qemu-img", ["create", "-q", "-f", "qcow2", source, String(size)]);
      await qemuIo(source, "qcow2", ["write -q -P 3 100k 700k", "write -q -P 4 2M 5k"]);
      await run("qemu-img", ["convert", "-n", "-f", "qcow2", "-O", "raw", source, device]);
      await run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", source, expected]);
      await expectSameBytes(device, expected, "after qemu-img convert -n");
      // Without -n it would make the file anew, which a device does not allow.
      const result = await attempt("qemu-img", ["convert", "-O", "raw", source, device]);
      expect(result.status).toBe(1);
      await expectSameBytes(device, expected, "after qemu-img convert");
    });
  });

  it("copies between two devices of a mount", async () => {
    await withWriteImage(writeKind("over-qcow2"), SIZE, async (source) => {
      const path = `${source.directory}/other.qcow2`;
      await run("qemu-img", ["create", "-q", "-f", "qcow2", path, String(source.size)]);
      await mounted([source.path, path], {}, async (mount) => {
        await run("cp", [mount.device(source.path), mount.device(path)]);
        await run("cmp", [mount.device(source.path), mount.device(path)]);
      });
      await expectDisk(path, "qcow2", source.expected);
      await expectClean(path);
      await source.expectIntact();
    });
  });

  it("leaves alone what is mounted with -r, and the snapshots of what is not", async () => {
    await withWriteImage(writeKind("snapshot"), SIZE, async (image) => {
      await mounted([image.path], { args: ["-r"] }, async (mount) => {
        const args = ["if=/dev/zero", `of=${mount.device(image.path)}`, "count=1", "conv=notrunc"];
        expect((await attempt("dd", args, { env: ENGLISH })).stderr).toMatch(/Read-only/);
      });
      await mounted([image.path], {}, async (mount) => {
        const snapshot = mount.snapshot(image.path, "before");
        const { stdout } = await run("stat", ["--format=%a", snapshot]);
        expect(stdout.trim()).toBe("400");
        const args = ["if=/dev/zero", `of=${snapshot}`, "count=1", "conv=notrunc"];
        expect((await attempt("dd", args, { env: ENGLISH })).status).toBe(1);
        await run("cmp", [snapshot, `${image.directory}/snapshot.raw`]);
      });
      await image.expectIntact();
    });
  });
});
