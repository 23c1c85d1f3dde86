// Devices that change their size while they are mounted: by the command, and by extended attributes.

import { open, stat } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { withProgram } from "../support/foreground.ts";
import { asRecord } from "../support/json.ts";
import { withLoop } from "../support/loop.ts";
import { mounted } from "../support/mounted.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run, until } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { casesOfTransport, describeNeeds, threadOptions } from "../support/transport.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import {
  expectClean,
  expectDisk,
  type WriteKindName,
  withWriteImage,
  writeKind,
} from "../support/write-images.ts";

const MIB = 2 ** 20;

const KINDS: readonly WriteKindName[] = [
  "v3",
  "raw",
  ...byScale(
    [],
    [
      ...(["clusters-512", "extended-l2", "over-raw", "compressed", "data-file-raw"] as const),
      ...(["v2-over-qed", "refcount-1", "clusters-2m"] as const),
    ],
  ),
];

const CASES = casesOfTransport("resize", KINDS, 1);

describe.each(CASES)("a mounted device of kind %s", (name) => {
  it("becomes larger and smaller, and shows nothing of what was cut off", async () => {
    await withWriteImage(writeKind(name), 3 * MIB, async (image) => {
      await mounted([image.path], {}, async (mount) => {
        const device = mount.device(image.path);
        // Whoever has it open sees it too.
        const reader = await open(device, "r");
        try {
          for (const size of ["+9M", "1000448", "2M", "512k", "40M"]) {
            const { stdout } = await tsimgfs(["resize", "--shrink", device, size]);
            expect(stdout).toBe("Image resized.\n");
            await run("truncate", ["-s", size, image.expected]);
            const { size: wanted } = await stat(image.expected);
            expect((await stat(device)).size).toBe(wanted);
            expect((await reader.stat()).size).toBe(wanted);
            await expectSameBytes(device, image.expected, `resized to ${size}`);
            const end = await reader.read(Buffer.alloc(1024), 0, 1024, wanted - 512);
            expect(end.bytesRead).toBe(512);
          }
        } finally {
          await reader.close();
        }
        const noise = ["if=/dev/urandom", "bs=1M", "count=2", "status=none", "conv=notrunc"];
        await run("dd", [...noise, "seek=37", `of=${image.expected}`]);
        const copy = ["bs=1M", "skip=37", "seek=37", "count=2", "status=none", "conv=notrunc"];
        await run("dd", [...copy, `if=${image.expected}`, `of=${device}`]);
      });
      await image.expectIntact();
    });
  });
});

describe("a mounted device", () => {
  it("lets a loop device on it have another size, with one I/O thread", async () => {
    await withScratch("resize", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: 4 * MIB, options: { cluster_size: 4096 } });
      await qemuIo(image, "qcow2", ["write -q -P 5 0 4M"]);
      await mounted([image], { args: threadOptions(1) }, async (mount) => {
        const device = mount.device(image);
        await withLoop(device, [], async (loop) => {
          for (const [size, bytes] of [
            ["700M", 700 * MIB],
            ["1M", MIB],
          ] as const) {
            await tsimgfs(["resize", "--shrink", device, size]);
            await run("losetup", ["--set-capacity", loop]);
            const { stdout } = await run("blockdev", ["--getsize64", loop]);
            expect(Number(stdout)).toBe(bytes);
          }
        });
      });
      expect(asRecord(await imageInfo([image]))["virtual-size"]).toBe(MIB);
      const expected = join(directory, "expected");
      await run("sh", ["-c", `head -c 1M /dev/zero | tr '\\0' '\\5' >${expected}`]);
      await expectDisk(image, "qcow2", expected);
    });
  });

  it("takes sizes as extended attributes, and shrinks by its own one only", async () => {
    await withScratch("resize", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: 4 * MIB });
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        const set = async (name: string, value: string): Promise<boolean> => {
          const args = ["-n", `user.tsimgfs.${name}`, "-v", value, device];
          return (await attempt("setfattr", args)).status === 0;
        };
        const sizeNow = async (): Promise<number> => (await stat(device)).size / MIB;
        expect(await set("resize", "+2M,preallocation=falloc")).toBe(true);
        expect(await sizeNow()).toBe(6);
        for (const value of ["5M", "-1M", "", "x", "7M,preallocation=none", "6291457", "0"]) {
          expect(await set("resize", value), value).toBe(false);
        }
        expect(await set("resize.shrink", "0")).toBe(false);
        expect(await sizeNow()).toBe(6);
        expect(await set("resize.shrink", "-3M")).toBe(true);
        expect(await sizeNow()).toBe(3);
      });
      expect(asRecord(await imageInfo([image]))["virtual-size"]).toBe(3 * MIB);
    });
  });

  it("forgets what was cut off, also for who has it open and does not look at its size", async () => {
    await withScratch("resize", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: 4 * MIB });
      await qemuIo(image, "qcow2", ["write -q -P 5 0 4M"]);
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        const set = (name: string, value: string): Promise<unknown> =>
          run("setfattr", ["-n", `user.tsimgfs.${name}`, "-v", value, device]);
        const reader = await open(device, "r");
        try {
          const last = async (): Promise<number | undefined> =>
            (await reader.read(Buffer.alloc(512), 0, 512, 4 * MIB - 512)).buffer[0];
          expect(await last()).toBe(5);
          await set("resize.shrink", "1M");
          await set("resize", "4M");
          await expect.poll(last).toBe(0);
        } finally {
          await reader.close();
        }
      });
    });
  });

  it("is resized where it is mounted, and not if it is read-only", async () => {
    await withScratch("resize", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: MIB });
      await mounted([image], {}, async (mount) => {
        const device = mount.device(image);
        await expectRefusal(["resize", image, "2M"], [/is mounted; tsimgfs resize .* does it/]);
        await expectRefusal(["resize", device, "1k"], [/use the --shrink option/]);
        await expectRefusal(["resize", device, "3000T"], [/the size is more than its image can/]);
        expect((await stat(device)).size).toBe(MIB);
      });
      await mounted([image], { args: ["-r"] }, async (mount) => {
        const refused = await attemptTsimgfs(["resize", mount.device(image), "2M"]);
        expect(refused).toMatchObject({ status: 1, stderr: expect.stringMatching(/read-only/) });
      });
    });
  });
});

describeNeeds("threads")("a growth that takes long", () => {
  /** More than any machine writes before it hears of a signal, bytes. */
  const GROWTH = "+64G";

  it.each(["command", "daemon"] as const)(
    "is given up when the %s is told to end",
    async (whom) => {
      await withScratch("long-growth", async (directory) => {
        const image = join(directory, "disk.qcow2");
        await createImage(image, "qcow2", { size: 8 * MIB });
        await qemuIo(image, "qcow2", ["write -P 7 0 8M"]);
        await mounted([image], {}, async (mount) => {
          const device = mount.device(image);
          const pid = mount.daemonPid();
          const before = (await stat(image)).blocks;
          const args = [MAIN, "resize", "--preallocation=full", device, GROWTH];
          await withProgram(process.execPath, args, async (command) => {
            await until("space is set aside", async () => {
              return (await stat(image)).blocks > before + (4 * MIB) / 512;
            });
            // Others are served meanwhile.
            await run("cmp", ["-n", String(4 * MIB), "-i", `0:${4 * MIB}`, device, device]);
            process.kill(whom === "command" ? command.pid : pid, "SIGINT");
            const status = await command.end();
            if (whom === "command") expect([status, command.output]).toEqual(["SIGINT", ""]);
            else {
              expect(status).toBe(1);
              expect(command.output).toMatch(/^tsimgfs: .*disk\.raw: was interrupted;.*\n$/);
            }
          });
          if (whom === "command") expect((await stat(device)).size).toBe(8 * MIB);
          else await until("the daemon is gone", () => mount.daemonPids().length === 0);
        });
        expect(await imageInfo([image])).toMatchObject({ "virtual-size": 8 * MIB });
        await expectClean(image);
        await qemuIo(image, "qcow2", ["read -P 7 0 8M"]);
      });
    },
  );
});
