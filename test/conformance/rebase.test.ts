// tsimgfs rebase beside qemu-img rebase: onto each image of a chain, onto others and onto none, and stopped runs.

import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withProgram } from "../support/foreground.ts";
import { asRecord } from "../support/json.ts";
import { createImage, type ImageFormat, imageInfo, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { makePatterns, scribble } from "../support/scribble.ts";
import { makeStreamChain, STREAM_TOPS, type StreamChain } from "../support/stream-chains.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean, expectDisk } from "../support/write-images.ts";

const MIB = 2 ** 20;
const [V3] = STREAM_TOPS;

function formatOf(name: string): ImageFormat {
  if (name.endsWith("raw")) return "raw";
  return name.endsWith("qed") ? "qed" : "qcow2";
}

/** Makes an image with much of another's disk, and some that differs. */
async function makeRelative(chain: StreamChain, name: string): Promise<void> {
  const path = join(chain.directory, name);
  const format = formatOf(name);
  await run("qemu-img", ["convert", "-f", "raw", "-O", format, chain.expected, path]);
  const random = new Random(`relative ${name}`);
  const patterns = await makePatterns(chain.directory, random);
  const plan = { size: 5 * MIB, clusterSize: 65536, kinds: ["write", "zero"], count: 8 } as const;
  await scribble(path, format, random, plan, patterns);
}

/** The image of a chain shows what it did, over the backing file of that name. */
async function expectRebased(chain: StreamChain, backing: string | undefined): Promise<void> {
  await expectDisk(chain.image, chain.format, chain.expected);
  await expectClean(chain.image, chain.format);
  const info = asRecord(await imageInfo([chain.image]));
  expect(info["backing-filename"]).toBe(backing);
}

describe.each(STREAM_TOPS)("tsimgfs rebase of $name", (top) => {
  it("leaves the disk as it is, on each image of its chain, on others, and on none", async () => {
    await withScratch("rebase", async (directory) => {
      const chain = await makeStreamChain(directory, top);
      await makeRelative(chain, "other.qcow2");
      await makeRelative(chain, "other.qed");
      await makeRelative(chain, "other.raw");
      const original = join(directory, "original");
      await cp(chain.image, original);
      const all = [...chain.below, "other.qcow2", "other.qed", "other.raw"];
      const names = byScale(top === V3 ? all : ["low.qed", "other.qcow2"], all);
      for (const name of names) {
        await cp(original, chain.image);
        await tsimgfs(["rebase", "-f", top.format, "-b", name, "-F", formatOf(name), chain.image]);
        await expectRebased(chain, name);
      }
      await tsimgfs(["rebase", "-f", top.format, "-b", "", chain.image]);
      await expectRebased(chain, undefined);
      // And back: where there was nothing, zeros hide the new backing file.
      await tsimgfs(["rebase", "-b", "other.raw", "-F", "raw", chain.image]);
      await expectRebased(chain, "other.raw");
    });
  });

  it("stores nothing that both backing files have", async () => {
    await withScratch("rebase", async (directory) => {
      const options =
        top.format === "qcow2"
          ? { cluster_size: top.clusterSize, ...("options" in top ? top.options : {}) }
          : {};
      const [one, two] = [join(directory, "one.raw"), join(directory, "two.raw")];
      await createImage(one, "raw", { size: 4 * MIB });
      await qemuIo(one, "raw", ["write -q -P 1 0 2M", "write -q -P 2 3M 512"]);
      await cp(one, two);
      await qemuIo(two, "raw", ["write -q -P 7 1M 512"]);
      const image = join(directory, "top");
      const backing = { file: "one.raw", format: "raw" } as const;
      await createImage(image, top.format, { options, backing });
      await tsimgfs(["rebase", "-f", top.format, "-b", "two.raw", "-F", "raw", image]);
      await expectDisk(image, top.format, one);
      const map = await imageMap(["-f", top.format, image]);
      const own = (Array.isArray(map) ? map : [])
        .map(asRecord)
        .filter(({ depth, data }) => depth === 0 && data === true);
      expect(own.map(({ start }) => start)).toEqual([MIB]);
    });
  });
});

describe("tsimgfs rebase", () => {
  it("writes zeros where version 2 cannot say them", async () => {
    await withScratch("rebase", async (directory) => {
      const [image, base] = [join(directory, "v2.qcow2"), join(directory, "base.raw")];
      await createImage(image, "qcow2", { size: 3 * MIB, options: { compat: "0.10" } });
      await createImage(base, "raw", { size: 5 * MIB });
      await qemuIo(base, "raw", ["write -q -P 5 0 5M"]);
      await tsimgfs(["rebase", "-b", "base.raw", "-F", "raw", image]);
      await qemuIo(image, "qcow2", ["read -q -P 0 0 3M"]);
      await expectClean(image);
    });
  });

  it("compresses what it copies with -c", async () => {
    await withScratch("rebase", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      await tsimgfs(["rebase", "-c", "-b", "", chain.image]);
      await expectRebased(chain, undefined);
      const check = asRecord(
        JSON.parse((await run("qemu-img", ["check", "--output", "json", chain.image])).stdout),
      );
      expect(Number(check["compressed-clusters"])).toBeGreaterThan(10);
    });
  });

  it("changes the name alone with -u, whatever is there", async () => {
    await withScratch("rebase", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const map = await imageMap([chain.image]);
      const named = ["rebase", "-u", "-b", "not-there", "-F", "qcow2", chain.image];
      const missing = join(directory, "not-there");
      expect((await tsimgfs(named)).stderr).toBe(
        `tsimgfs: ${chain.image}: warning: its backing file ${missing} does not exist\n`,
      );
      const info = asRecord(await imageInfo([chain.image]));
      expect(info["backing-filename"]).toBe("not-there");
      const there = ["rebase", "-u", "-b", chain.pathBelow(1), "-F", "qcow2", chain.image];
      expect((await tsimgfs(there)).stderr).toBe("");
      await rm(chain.pathBelow(1));
      expect((await tsimgfs(["rebase", "-u", chain.image])).stderr).toBe("");
      expect(asRecord(await imageInfo([chain.image]))["backing-filename"]).toBeUndefined();
      expect(await imageMap([chain.image])).not.toEqual(map);
      await expectClean(chain.image);
    });
  });

  it("does not read what the image has itself, and may be damaged", async () => {
    await withScratch("rebase", async (directory) => {
      const [image, base] = [join(directory, "top.qcow2"), join(directory, "base.raw")];
      await createImage(base, "raw", { size: MIB });
      await qemuIo(base, "raw", ["write -q -P 5 0 1M"]);
      const backing = { file: base, format: "raw" } as const;
      await createImage(image, "qcow2", { size: MIB, backing });
      await qemuIo(image, "qcow2", ["write -q -P 1 0 64k", "write -q -c -P 2 128k 64k"]);
      // What is compressed is in the last cluster of the file, which ends with it.
      const bytes = await readFile(image);
      await writeFile(image, bytes.fill(0x07, bytes.length - (bytes.length % 65536)));
      expect((await attempt("qemu-io", ["-r", "-c", "read 128k 512", image])).status).toBe(1);
      await tsimgfs(["rebase", "-b", "", image]);
      await qemuIo(image, "qcow2", [
        ...["read -q -P 1 0 64k", "read -q -P 5 64k 64k", "read -q -P 5 192k 832k"],
      ]);
      expect(asRecord(await imageInfo([image]))["backing-filename"]).toBeUndefined();
      await expectClean(image);
    });
  });

  it("refuses to change what snapshots show, and only that", async () => {
    await withScratch("rebase", async (directory) => {
      const [image, base] = [join(directory, "top.qcow2"), join(directory, "base.raw")];
      await createImage(base, "raw", { size: MIB });
      await qemuIo(base, "raw", ["write -q -P 5 0 1M"]);
      await createImage(image, "qcow2", { size: MIB });
      await qemuIo(image, "qcow2", ["write -q -P 1 64k 64k"]);
      await run("qemu-img", ["snapshot", "-c", "old", image]);
      const none = ["rebase", "-b", "", image];
      const onto = (name: string): string[] => ["rebase", "-b", name, "-F", "raw", image];
      const reason = 'its snapshot "old" shows what is below it, from offset 0 on';
      await tsimgfs(none);
      await expectRefusal(onto("base.raw"), [reason]);
      await run("qemu-img", ["rebase", "-u", "-b", "base.raw", "-F", "raw", image]);
      await expectRefusal(none, [reason]);
      await tsimgfs(onto(base));
      expect(asRecord(await imageInfo([image]))["backing-filename"]).toBe(base);
      await expectClean(image);
    });
  });

  it("refuses what it cannot do, in one line, and changes nothing", async () => {
    await withScratch("rebase", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const { image } = chain;
      const before = (await run("sha256sum", [image])).stdout;
      const onto = (name: string, format = "qcow2"): string[] => [
        ...["rebase", "-b", name, "-F", format, image],
      ];
      await expectRefusal(["rebase", image], ["state the new backing file with -b"]);
      await expectRefusal(["rebase", "-b", "x", image], ["state the format of the backing file x"]);
      await expectRefusal(onto("x", "vmdk"), ["vmdk is not one of raw, qcow2, qed"]);
      await expectRefusal(onto("x"), ["x: no such file"]);
      await expectRefusal(onto("top.qcow2"), ["is in its own backing chain"]);
      await expectRefusal(onto("base.raw"), ["base.raw: is not a qcow2 image"]);
      await expectRefusal(
        ["rebase", "-b", "x", "-F", "raw", chain.pathBelow(3)],
        ["raw images have no backing files"],
      );
      const raw = chain.pathBelow(3);
      for (const none of [["-b", ""], []]) {
        const args = ["rebase", "-u", "-f", "raw", ...none, raw];
        await expectRefusal(args, ["raw images have no backing files"]);
      }
      for (const name of ["top.qcow2", "./top.qcow2", image]) {
        const args = ["rebase", "-u", "-b", name, "-F", "qcow2", image];
        await expectRefusal(args, ["top.qcow2: is in its own backing chain"]);
      }
      await run("qemu-img", ["rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", chain.pathBelow(0)]);
      await expectRefusal(onto("high.qcow2"), ["backing chain"]);
      expect((await run("sha256sum", [image])).stdout).toBe(before);
    });
  });

  it("survives being killed at any moment", async () => {
    await withScratch("rebase", async (directory) => {
      const random = new Random("killed rebase");
      const chain = await makeStreamChain(directory, V3, 24 * MIB);
      for (let kill = 0; kill < byScale(4, 40); kill++) {
        const args = [MAIN, "rebase", "-b", "", chain.image];
        await withProgram(process.execPath, args, async (program) => {
          await new Promise((resolve) => setTimeout(resolve, random.between(150, 700)));
          if (program.isRunning) program.kill("SIGKILL");
          await program.end();
        });
        const { verdict, output } = await checkImage(chain.image);
        expect(verdict, output).not.toBe("corrupt");
        await expectDisk(chain.image, "qcow2", chain.expected);
      }
      await tsimgfs(["rebase", "-b", "", chain.image]);
      await expectRebased(chain, undefined);
    });
  });
});
