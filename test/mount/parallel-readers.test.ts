// Ten processes that read one device at random offsets at once, with checksums.

import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { randomWindows } from "../support/device-content.ts";
import { mounted } from "../support/mounted.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { makeSample } from "../support/sample-image.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport } from "../support/transport.ts";

const READERS = 10;
const SIZE = 64 * 2 ** 20;

const IMAGES = casesOfTransport(
  "images",
  [
    ["plain.qcow2", []],
    ["zlib.qcow2", ["-c"]],
    ["zstd.qcow2", ["-c", "-o", "compression_type=zstd"]],
    ["small.qcow2", ["-o", "cluster_size=512"]],
  ] as const,
  1,
);

/** A reader: sums of windows of a file, one line each, by dd and sha256sum. */
const SUM_WINDOWS =
  'while read -r offset size flags; do dd if="$0" skip="$offset" count="$size" bs="$size" ' +
  'iflag=skip_bytes,count_bytes,fullblock"$flags" status=none | sha256sum; done';

describe("ten processes at once", () => {
  let directory = "";
  /** An image of each kind and a raw file with the contents of its disk. */
  const disks: { readonly image: string; readonly expected: string }[] = [];

  beforeAll(async () => {
    directory = await makeScratch("parallel");
    const source = join(directory, "source.raw");
    // fio writes blocks that carry a checksum of their own.
    await run("fio", fioArgs(source, ["--rw=write", "--do_verify=0", "--numjobs=1"]));
    const convert = ["convert", "-f", "raw", "-O", "qcow2"];
    for (const [name, options] of IMAGES) {
      const image = join(directory, name);
      await run("qemu-img", [...convert, ...options, source, image]);
      disks.push({ image, expected: source });
    }
    const base = (disks[1] ?? disks[0])?.image ?? "";
    const overlay = await makeSample(directory, "overlay.qcow2", {
      size: SIZE,
      backing: { file: base, format: "qcow2" },
    });
    disks.push({ image: overlay.path, expected: overlay.expected });
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  function fioArgs(file: string, more: readonly string[]): string[] {
    return [
      ...["--name=verify", `--filename=${file}`, `--size=${SIZE}`, "--bs=4k", "--verify=crc32c"],
      ...["--ioengine=psync", "--refill_buffers", "--buffer_compress_percentage=50"],
      ...[
        "--buffer_compress_chunk=512",
        "--randseed=1",
        "--verify_state_save=0",
        "--group_reporting",
        "--minimal",
        ...more,
      ],
    ];
  }

  it("read random windows whose checksums are those of qemu-img convert's", async () => {
    await mounted(
      disks.map(({ image }) => image),
      { args: ["-r"] },
      async (mount) => {
        for (const { image, expected } of disks) {
          const { size } = await stat(expected);
          const readers = Array.from({ length: READERS }, async (_, index) => {
            const random = new Random(`${image.split("/").at(-1)} reader ${index}`);
            const windows = randomWindows(random, size, 65536, byScale(40, 400));
            const lines = (flag: string): string =>
              windows.map((window) => `${window.offset} ${window.size * 7} ${flag}\n`).join("");
            const [actual, wanted] = await Promise.all([
              run("sh", ["-c", SUM_WINDOWS, mount.device(image)], {
                input: lines(index % 2 === 0 ? "" : ",direct"),
              }),
              run("sh", ["-c", SUM_WINDOWS, expected], { input: lines("") }),
            ]);
            expect(actual.stdout, `${image}, reader ${index}`).toBe(wanted.stdout);
            expect(actual.stderr).toBe("");
          });
          await Promise.all(readers);
        }
      },
    );
  });

  it.each(casesOfTransport("parallel", ["--direct=0", "--direct=1"], 1))(
    "find all checksums of fio in place (%s)",
    async (direct) => {
      const images = disks.slice(0, -1).map(({ image }) => image);
      await mounted(images, { args: ["-r"] }, async (mount) => {
        for (const image of images) {
          const more = ["--rw=randread", `--numjobs=${READERS}`, "--readonly", direct];
          await run("fio", fioArgs(mount.device(image), [...more, "--io_size=4m"]));
        }
      });
    },
  );
});
