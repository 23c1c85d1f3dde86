// A writable mount and everybody else: QEMU and tsimgfs are kept out while it lasts, and are told by whom.

import { readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { withProgram } from "../support/foreground.ts";
import { type Mount, mounted, refusedMount } from "../support/mounted.ts";
import { createImage, type ImageFormat, qemuIo } from "../support/qemu.ts";
import { attempt, run, until } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { itMainly } from "../support/transport.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";

const READ_ONLY = { args: ["-r"] } as const;

/** The bytes of a file that are locked, as the kernel lists them. */
async function lockedBytes(image: string): Promise<number[]> {
  const { ino } = await stat(image);
  const line = new RegExp(`OFDLCK .*:${ino} (\\d+) (\\d+)$`, "gm");
  const bytes = new Set<number>();
  for (const [, first, last] of (await readFile("/proc/locks", "latin1")).matchAll(line)) {
    for (let byte = Number(first); byte <= Number(last); byte++) {
      bytes.add(byte);
    }
  }
  return [...bytes].sort((one, other) => one - other);
}

/** Options of qemu-io with which it cannot live beside a writer. Readers of raw images can, says QEMU. */
function rivals(format: ImageFormat): string[][] {
  return format === "raw" ? [[]] : [[], ["-r"]];
}

/** Calls `body` while a qemu-io has an image open. */
async function whileQemuHas<T>(
  image: string,
  args: readonly string[],
  body: (pid: number) => Promise<T>,
): Promise<T> {
  return await withProgram("qemu-io", [...args, image], async (program) => {
    await until("QEMU holds the image", async () => (await lockedBytes(image)).length > 0);
    return await body(program.pid);
  });
}

describe("a writable mount", () => {
  let directory = "";
  let sample: SampleImage;
  let flat: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("write-locks");
    sample = await makeSample(directory, "vm.qcow2");
    flat = await makeSample(directory, "flat.raw", { format: "raw" });
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** Mounts an image of each format, one after the other. */
  async function eachMounted(body: (mount: Mount, image: SampleImage) => Promise<void>) {
    for (const image of [sample, flat]) {
      await mounted([image.path], {}, (mount) => body(mount, image));
    }
  }

  /** What a line has to say of the process that has the image. */
  function holder(pid: number): RegExp {
    return new RegExp(`\\b${pid}\\b`);
  }

  it("holds the locks of a QEMU writer", async () => {
    await eachMounted(async (_, { path }) => {
      expect(await lockedBytes(path)).toEqual([100, 101, 103, 201, 203]);
    });
    expect(await lockedBytes(sample.path)).toEqual([]);
  });

  it("keeps QEMU out, reader and writer", async () => {
    await eachMounted(async (_, { path, format }) => {
      for (const mode of rivals(format)) {
        const qemu = await attempt("qemu-io", [...mode, "-f", format, "-c", "read 0 512", path]);
        expect(qemu.status).toBe(1);
        expect(qemu.stderr).toMatch(/lock/);
      }
      await run("qemu-img", ["info", "-U", "-f", format, path]);
    });
    await qemuIo(sample.path, "qcow2", ["write -q -z 0 0"]);
  });

  it("keeps other mounts out, which say who has the image", async () => {
    await eachMounted(async (mount, { path }) => {
      const pid = mount.daemonPid();
      for (const options of [{}, READ_ONLY]) {
        const line = await refusedMount([path], options);
        expect(line).toContain(path);
        expect(line).toMatch(holder(pid));
      }
      await mounted([path], { args: ["-r", "-U"] }, async (other) => {
        await run("cmp", [other.device(path), mount.device(path)]);
      });
    });
  });

  itMainly("makes info and map refuse the image without -U, and say who has it", async () => {
    await eachMounted(async (mount, { path }) => {
      for (const command of ["info", "map"]) {
        await expectRefusal([command, path], [path, holder(mount.daemonPid())]);
        await tsimgfs([command, "-U", path]);
      }
    });
  });

  itMainly("is refused while QEMU has the image, for reading or for writing", async () => {
    for (const { path, format } of [sample, flat]) {
      for (const mode of rivals(format)) {
        await whileQemuHas(path, [...mode, "-f", format], async (pid) => {
          const line = await refusedMount([path]);
          expect(line).toContain(path);
          expect(line).toMatch(holder(pid));
        });
      }
      await whileQemuHas(path, ["-r", "-f", format], async () => {
        await mounted([path], READ_ONLY, async () => {});
      });
    }
  });

  it("is refused while a read-only mount has the image; read-only mounts are not", async () => {
    await mounted([sample.path], READ_ONLY, async (reader) => {
      const line = await refusedMount([sample.path]);
      expect(line).toContain(sample.path);
      expect(line).toMatch(holder(reader.daemonPid()));
      await mounted([sample.path], READ_ONLY, async (second) => {
        await run("cmp", [reader.device(sample.path), second.device(sample.path)]);
      });
    });
    await mounted([sample.path], {}, async () => {});
  });

  itMainly("is refused for one image that is named twice", async () => {
    const link = join(directory, "link.qcow2");
    await run("ln", ["-s", sample.path, link]);
    const line = await refusedMount([sample.path, link]);
    expect(line).toMatch(/(vm|link)\.qcow2/);
  });

  itMainly("shares its backing file with readers only", async () => {
    const base = await makeSample(directory, "base.qcow2");
    const [first, second] = [join(directory, "first.qcow2"), join(directory, "second.qcow2")];
    for (const path of [first, second]) {
      await createImage(path, "qcow2", { backing: { file: base.path, format: "qcow2" } });
    }
    await mounted([first], {}, async () => {
      await mounted([second], {}, async (other) => {
        await expectSameBytes(other.device(second), base.expected, "beside another overlay");
        const dd = ["if=/dev/urandom", `of=${other.device(second)}`, "count=9", "conv=notrunc"];
        await run("dd", dd);
      });
      await run("qemu-img", ["info", base.path]);
      expect(await refusedMount([base.path])).toContain("base.qcow2");
      const write = ["-f", "qcow2", "-c", "write 0 512", base.path];
      expect((await attempt("qemu-io", write)).stderr).toMatch(/lock/);
    });
    await mounted([base.path], {}, async () => {
      expect(await refusedMount([first])).toContain("base.qcow2");
    });
  });

  itMainly("is refused with an overlay and its own backing file", async () => {
    const overlay = join(directory, "overlay.qcow2");
    await createImage(overlay, "qcow2", { backing: { file: sample.path, format: "qcow2" } });
    for (const images of [
      [overlay, sample.path],
      [sample.path, overlay],
    ]) {
      expect(await refusedMount(images)).toContain("vm.qcow2");
    }
    await mounted([overlay, sample.path], READ_ONLY, async () => {});
  });

  itMainly("holds its external data file as well", async () => {
    const path = join(directory, "with-data.qcow2");
    const data = join(directory, "with-data.data");
    await createImage(path, "qcow2", { size: 1_048_576, options: { data_file: data } });
    await mounted([path], {}, async (mount) => {
      const write = ["-f", "raw", "-c", "write 0 512", data];
      expect((await attempt("qemu-io", write)).stderr).toMatch(/lock/);
      const other = await attemptTsimgfs(["map", "--format", "raw", data]);
      expect(other.stderr).toMatch(holder(mount.daemonPid()));
    });
    await whileQemuHas(data, ["-f", "raw"], async (pid) => {
      expect(await refusedMount([path])).toMatch(holder(pid));
    });
  });

  it("gives its locks up when it ends, also by SIGKILL", async () => {
    await mounted([sample.path], {}, async () => {});
    expect(await lockedBytes(sample.path)).toEqual([]);
    await mounted([sample.path], {}, async (mount) => {
      process.kill(mount.daemonPid(), "SIGKILL");
      await until("the daemon is gone", () => mount.daemonPids().length === 0);
      await mounted([sample.path], {}, async () => {});
      await qemuIo(sample.path, "qcow2", ["write -q -z 0 0"]);
    });
    await expectClean(sample.path);
  });
});
