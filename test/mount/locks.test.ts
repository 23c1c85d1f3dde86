// QEMU and tsimgfs on one image: readers live side by side, a writer and a reader keep each other out.

import { readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { type Foreground, withProgram } from "../support/foreground.ts";
import { mounted, refusedMount } from "../support/mounted.ts";
import type { ImageFormat } from "../support/qemu.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport, itOnce } from "../support/transport.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

/** Lock byte of an opener that writes: 100 + 1, see native-notes/locks.md. */
const WRITE_BYTE = 101;

/** Waits until /proc/locks shows a lock on an image's byte for writing. */
async function untilLocked(image: string): Promise<void> {
  const { ino } = await stat(image);
  const line = new RegExp(`OFDLCK .*:${ino} (\\d+) (\\d+)$`, "gm");
  await until("QEMU holds the image for writing", async () => {
    const locks = await readFile("/proc/locks", "latin1");
    return [...locks.matchAll(line)].some(
      ([, first, last]) => Number(first) <= WRITE_BYTE && WRITE_BYTE <= Number(last),
    );
  });
}

/** Calls `body` while a qemu-io holds an image open for writing. */
async function whileQemuWrites<T>(
  image: string,
  format: ImageFormat,
  body: (writer: Foreground) => Promise<T>,
): Promise<T> {
  return await withProgram("qemu-io", ["-f", format, image], async (writer) => {
    await untilLocked(image);
    return await body(writer);
  });
}

describe("locks between QEMU and a mount", () => {
  let directory = "";
  let samples: readonly SampleImage[] = [];
  let sample: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("locks");
    sample = await makeSample(directory, "vm.qcow2");
    samples = [
      sample,
      await makeSample(directory, "flat.raw", { format: "raw" }),
      await makeSample(directory, "old.qed", { format: "qed" }),
    ];
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it("let qemu-img read the image beside a mount", async () => {
    await mounted([sample.path], { args: ["-r"] }, async () => {
      const copy = join(directory, "copy");
      await run("qemu-img", ["info", sample.path]);
      await run("qemu-img", ["map", sample.path]);
      await run("qemu-img", ["check", sample.path]);
      await run("qemu-img", ["convert", "-O", "raw", sample.path, copy]);
      await expectSameBytes(copy, sample.expected, "qemu-img beside the mount");
    });
  });

  it("let two mounts and tsimgfs info and map read the same image", async () => {
    await mounted([sample.path], { args: ["-r"] }, async (first) => {
      await mounted([sample.path], { args: ["-r"] }, async (second) => {
        await run("cmp", [first.device(sample.path), second.device(sample.path)]);
        await tsimgfs(["info", sample.path]);
        await tsimgfs(["map", sample.path]);
      });
    });
  });

  it.each(casesOfTransport("locks", [0, 1, 2], 1))(
    "keep QEMU from writing to a mounted image (%i)",
    async (index) => {
      const { path, format } = samples[index] ?? sample;
      await mounted([path], { args: ["-r"] }, async () => {
        const { status, stderr } = await attempt("qemu-io", [
          "-f",
          format,
          "-c",
          "write 0 512",
          path,
        ]);
        expect(status).toBe(1);
        expect(stderr).toMatch(/lock/);
      });
      await run("qemu-io", ["-f", format, "-c", "read 0 512", path]);
    },
  );

  itOnce.each([0, 1, 2])(
    "refuse a mount of an image that QEMU writes to, and name it (%i)",
    async (index) => {
      const { path, format } = samples[index] ?? sample;
      await whileQemuWrites(path, format, async (writer) => {
        const line = await refusedMount([path], { args: ["-r"] });
        expect(line).toContain(path);
        expect(line).toMatch(new RegExp(`qemu-io|\\b${writer.pid}\\b`));
      });
    },
  );

  itOnce("refuse a mount of an image that a qemu-storage-daemon may write to", async () => {
    const args = [
      ...["--blockdev", `driver=file,node-name=file,filename=${sample.path}`],
      ...["--blockdev", "driver=qcow2,node-name=disk,file=file"],
    ];
    await withProgram("qemu-storage-daemon", args, async (writer) => {
      await untilLocked(sample.path);
      expect(await refusedMount([sample.path], { args: ["-r"] })).toMatch(
        new RegExp(`qemu-storage-d|\\b${writer.pid}\\b`),
      );
    });
  });

  it.each(casesOfTransport("-U", ["-U", "--force-share"], 1))(
    "are not looked at with %s",
    async (option) => {
      await whileQemuWrites(sample.path, "qcow2", async () => {
        await mounted([sample.path], { args: ["-r", option] }, async (mount) => {
          await expectSameBytes(mount.device(sample.path), sample.expected, option);
        });
        await tsimgfs(["info", option, sample.path]);
        await tsimgfs(["map", option, sample.path]);
      });
    },
  );

  itOnce("make info and map refuse an image that QEMU writes to, as qemu-img does", async () => {
    await whileQemuWrites(sample.path, "qcow2", async () => {
      await expectRefusal(["info", sample.path], [sample.path, /lock|use/]);
      await expectRefusal(["map", sample.path], [sample.path, /lock|use/]);
    });
  });

  it("cover backing files too", async () => {
    const overlay = await makeSample(directory, "overlay.qcow2", {
      backing: { file: sample.path, format: "qcow2" },
    });
    await mounted([overlay.path], {}, async () => {
      const write = ["-f", "qcow2", "-c", "write 0 512", sample.path];
      expect((await attempt("qemu-io", write)).stderr).toMatch(/lock/);
    });
    await whileQemuWrites(sample.path, "qcow2", async () => {
      expect(await refusedMount([overlay.path])).toContain(sample.path);
    });
  });

  it("are released when the mount ends", async () => {
    await mounted([sample.path], {}, async () => {});
    await run("qemu-io", ["-f", "qcow2", "-c", "write -z 0 0", sample.path]);
  });
});
