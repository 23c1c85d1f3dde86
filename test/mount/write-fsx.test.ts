// Long random sequences of everything a program can do to a device, by several processes, against a plain file.

import { describe, expect, it } from "vitest";
import type { FsxAccess } from "../support/fsx-plan.ts";
import { runFsx } from "../support/fsx-run.ts";
import { type Mount, mounted } from "../support/mounted.ts";
import { Random, SEED } from "../support/random.ts";
import { byScale, LONG } from "../support/scale.ts";
import { casesOfTransport, threadOptions } from "../support/transport.ts";
import {
  WRITE_KINDS,
  type WriteImage,
  withWriteImage,
  writeKind,
} from "../support/write-images.ts";

const SIZE = byScale(8, 64) * 2 ** 20;
const OPERATIONS = byScale(120, 1500);
/** Mounts of one image, one after the other. */
const SESSIONS = byScale(1, 3);
const PROCESSES = 3;
const ACCESSES: readonly FsxAccess[] = ["buffered", "direct", "mixed"];

const KINDS = casesOfTransport("fsx", WRITE_KINDS, 4);

/** Options that change how things are done, not what a device contains. */
function pickOptions(random: Random): string[] {
  return [
    ...threadOptions(random.pick([1, 2, 4, 16])),
    ...random.pick([[], [], ["--detect-zeroes", "off"], ["--detect-zeroes", "unmap"]]),
  ];
}

/** Lets several processes do random things to the device of an image. */
async function operate(
  image: WriteImage,
  random: Random,
  access: FsxAccess,
  mount: Mount,
): Promise<void> {
  const reports = await runFsx(random, {
    device: mount.device(image.path),
    expected: image.expected,
    size: image.size,
    unit: image.clusterSize,
    maxLength: random.pick([10_000, 200_000, 1_500_000]),
    access,
    processes: PROCESSES,
    end: { operations: OPERATIONS },
  });
  expect(reports.map(({ operations }) => operations)).toEqual(
    Array.from({ length: PROCESSES }, () => OPERATIONS),
  );
}

/** A mount in which they do. */
async function session(image: WriteImage, random: Random, access: FsxAccess): Promise<void> {
  await mounted([image.path], { args: pickOptions(random) }, (mount) =>
    operate(image, random, access, mount),
  );
  await image.expectIntact();
}

describe("random operations of several processes", () => {
  it.each(KINDS.map((kind, index) => ({ kind, index, name: kind.name })))(
    "leave what they would leave in a plain file, mount after mount: $name",
    async ({ kind, index }) => {
      const random = new Random(`fsx ${kind.name}`);
      await withWriteImage(kind, SIZE, async (image) => {
        for (let count = 0; count < SESSIONS; count++) {
          await session(image, random, ACCESSES[(SEED + index + count) % 3] ?? "mixed");
        }
      });
    },
  );

  it("on two images of one mount do not meet", async () => {
    const random = new Random("fsx two images");
    await withWriteImage(writeKind("clusters-4k"), SIZE, async (first) => {
      await withWriteImage(writeKind("raw"), SIZE, async (second) => {
        const images = [first, second];
        const paths = images.map(({ path }) => path);
        await mounted(paths, { args: threadOptions(2) }, async (mount) => {
          await Promise.all(images.map((image) => operate(image, random, "mixed", mount)));
        });
        for (const image of images) {
          await image.expectIntact();
        }
      });
    });
  });

  it.each(LONG ? ACCESSES : [])("and on 64 KiB of disk alone: %s", async (access) => {
    const random = new Random(`fsx small ${access}`);
    await withWriteImage({ name: "small", format: "qcow2", clusterSize: 4096 }, 65536, (image) =>
      session(image, random, access),
    );
  });
});
