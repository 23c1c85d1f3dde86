// tsimgfs amend to version 2 of overlays whose snapshots have zero clusters: disk and snapshots stay as qemu-img sees them.

import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { AmendJob } from "../../src/block/amend-job.ts";
import {
  createEncryptedImage,
  encryptedArguments,
  PASSPHRASE,
} from "../support/encrypted-image.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { makePatterns, scribbleCommands } from "../support/scribble.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { expectClean, fileUsage } from "../support/write-images.ts";

const MIB = 2 ** 20;
const SNAPSHOTS = ["one", "two", "three"] as const;

/** An overlay with zero clusters, with and without places, in shared tables and others. */
async function makeOverlay(directory: string, clusterSize: number): Promise<string> {
  const [base, image] = [join(directory, "base.raw"), join(directory, "overlay.qcow2")];
  await createImage(base, "raw", { size: 3 * MIB });
  await qemuIo(base, "raw", ["write -q -P 7 0 3M"]);
  const backing = { file: base, format: "raw" } as const;
  const options = { cluster_size: clusterSize };
  await createImage(image, "qcow2", { size: 4 * MIB, options, backing });
  const random = new Random(`overlay of ${clusterSize}`);
  const patterns = await makePatterns(directory, random);
  const kinds = ["write", "zero", "discard", "unmap"] as const;
  for (const name of SNAPSHOTS) {
    const plan = { size: 4 * MIB, clusterSize, count: 12, kinds };
    await qemuIo(image, "qcow2", scribbleCommands(random, plan, patterns));
    await qemuIo(image, "qcow2", ["write -q -z 1M 128k", "write -q -z -u 2M 64k"]);
    await run("qemu-img", ["snapshot", "-q", "-c", name, image]);
  }
  await qemuIo(image, "qcow2", ["write -q -P 9 100k 8k"]);
  return image;
}

/** What the disk and its snapshots are, as qemu-img sees them. */
async function contentsOf(image: string): Promise<Record<string, string>> {
  const contents: Record<string, string> = {};
  for (const name of ["", ...SNAPSHOTS]) {
    const raw = `${image}.raw`;
    const options = name === "" ? [] : ["-l", name];
    await run("qemu-img", ["convert", "-O", "raw", ...options, image, raw]);
    contents[name] = (await run("sha256sum", ["--zero", raw])).stdout.split(" ")[0] ?? "";
  }
  return contents;
}

async function compatOf(image: string): Promise<string> {
  return (
    /"compat":"([\d.]+)"/.exec(JSON.stringify(await imageInfo(["-f", "qcow2", image])))?.[1] ?? ""
  );
}

describe("tsimgfs amend -o compat=0.10 of an overlay with snapshots", () => {
  it.each(byScale([4096, 65536], [512, 4096, 65536, 2 * MIB]))(
    "expands zero clusters of snapshots, %i bytes per cluster",
    async (clusterSize) => {
      await withScratch("amend-snapshots", async (directory) => {
        const image = await makeOverlay(directory, clusterSize);
        const contents = await contentsOf(image);
        const theirs = join(directory, "theirs.qcow2");
        await copyFile(image, theirs);
        await tsimgfs(["amend", "-p", "-o", "compat=0.10", image]);
        expect(await compatOf(image)).toBe("0.10");
        await expectClean(image);
        expect(await contentsOf(image)).toEqual(contents);
        await run("qemu-img", ["amend", "-o", "compat=0.10", theirs]);
        const [ours, their] = [await fileUsage(image), await fileUsage(theirs)];
        expect(ours.allocated).toBeLessThanOrEqual(their.allocated + MIB);
        // The places are clusters like others: they are given back with the snapshots.
        for (const name of SNAPSHOTS) await run("qemu-img", ["snapshot", "-q", "-d", name, image]);
        await expectClean(image);
      });
    },
  );

  it("can be stopped after each step, and goes on from there", async () => {
    await withScratch("amend-snapshots", async (directory) => {
      const image = await makeOverlay(directory, 4096);
      const contents = await contentsOf(image);
      const args = { version: 2, refcountBits: undefined, lazyRefcounts: undefined } as const;
      const names = {
        dataFile: undefined,
        dataFileRaw: undefined,
        backingFile: undefined,
      } as const;
      const amendment = { ...args, ...names, backingFormat: undefined, keySlots: undefined };
      const start = (): AmendJob =>
        new AmendJob({
          path: image,
          amendment,
          size: undefined,
          open: { format: undefined, backingPolicy: undefined },
          warn: () => undefined,
        });
      for (let steps = 1; steps <= byScale(4, 40); steps++) {
        const job = start();
        try {
          for (let step = 0; step < steps; step++) if (job.step()) break;
          expect(job.done).toBeLessThanOrEqual(job.total);
        } finally {
          job.close();
        }
        await expectClean(image);
        expect(await contentsOf(image)).toEqual(contents);
      }
      await tsimgfs(["amend", "-o", "compat=0.10", image]);
      expect(await compatOf(image)).toBe("0.10");
      expect(await contentsOf(image)).toEqual(contents);
    });
  });

  it("is refused where the zeros would have to be encrypted", async () => {
    await withScratch("amend-snapshots", async (directory) => {
      const [base, image, key] = ["base.raw", "overlay.qcow2", "key"].map((name) =>
        join(directory, name),
      ) as [string, string, string];
      await createImage(base, "raw", { size: MIB });
      await run("sh", ["-c", 'printf %s "$0" > "$1"', PASSPHRASE, key]);
      await createEncryptedImage(image, ["encrypt.format=aes", "encrypt.key-secret=key"], "1M", [
        "-b",
        base,
        "-F",
        "raw",
      ]);
      const source = encryptedArguments(image);
      await run("qemu-io", [...source, "-c", "write -z 0 64k"]);
      await run("qemu-img", ["snapshot", "-q", "-c", "one", ...source]);
      const args = ["amend", "--secret", key, "-o", "compat=0.10", image];
      await expectRefusal(args, [/is encrypted, and its snapshots have zero clusters/]);
      expect((await attempt("qemu-img", ["check", "-q", ...source])).status).toBe(0);
    });
  });
});
