// tsimgfs commit beside qemu-img commit: images of all kinds, into each image below, and runs that are stopped.

import { cp, open, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withProgram } from "../support/foreground.ts";
import { asRecord } from "../support/json.ts";
import { createImage, imageInfo, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { makeStreamChain, STREAM_TOPS, type StreamChain } from "../support/stream-chains.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean, expectDisk } from "../support/write-images.ts";

const MIB = 2 ** 20;
const [V3] = STREAM_TOPS;

type Format = "raw" | "qcow2" | "qed";
const formatOf = (name: string): Format =>
  name.endsWith("raw") ? "raw" : name.endsWith("qed") ? "qed" : "qcow2";

/** What an image itself has, by qemu-img. */
async function ownRuns(image: string): Promise<unknown[]> {
  const map = await imageMap([image]);
  if (!Array.isArray(map)) throw new TypeError("no map");
  return map.filter((run) => asRecord(run)["depth"] === 0 && asRecord(run)["present"] !== false);
}

/**
 * Commits the image of a chain in two copies of its directory, with tsimgfs and with QEMU, and expects that the
 * base is the same then.
 */
async function expectAsQemu(chain: StreamChain, index: number): Promise<void> {
  const name = chain.below[index] ?? "";
  const [ours, theirs] = [`${chain.directory}-ours`, `${chain.directory}-theirs`];
  await cp(chain.directory, ours, { recursive: true });
  await cp(chain.directory, theirs, { recursive: true });
  const image = `top.${chain.format}`;
  const args = ["commit", "-f", chain.format, ...(index === 0 ? [] : ["-b", name]), image];
  const qemu = await attempt("qemu-img", args, { cwd: theirs });
  expect((await tsimgfs(args, { cwd: ours })).stdout).toBe(qemu.stdout || "Image committed.\n");
  // QEMU cannot make QED images longer.
  const isDoable = qemu.status === 0;
  expect(isDoable, qemu.stderr).toBe(formatOf(name) !== "qed");
  const oracle = isDoable ? join(theirs, name) : chain.expected;
  await run("qemu-img", ["compare", join(ours, name), oracle]);
  await expectDisk(join(ours, image), chain.format, chain.expected);
  await expectSound(join(ours, image));
  await expectSound(join(ours, name));
  const isEmptied = index === 0 && chain.format === "qcow2";
  expect((await ownRuns(join(ours, image))).length > 0).toBe(!isEmptied);
  await rm(ours, { recursive: true });
  await rm(theirs, { recursive: true });
}

async function expectSound(path: string): Promise<void> {
  const format = formatOf(path);
  if (format !== "raw") await expectClean(path, format);
}

describe.each(STREAM_TOPS)("tsimgfs commit of $name", (top) => {
  it("leaves the same in each image below as qemu-img", async () => {
    await withScratch("commit", async (root) => {
      const directory = join(root, "chain");
      await run("mkdir", [directory]);
      const chain = await makeStreamChain(directory, top);
      for (const index of byScale(top === V3 ? [0, 1, 2, 3] : [0, 3], [0, 1, 2, 3])) {
        await expectAsQemu(chain, index);
      }
    });
  });
});

describe("tsimgfs commit", () => {
  it("keeps zeros small, and makes a shorter base longer", async () => {
    await withScratch("commit", async (directory) => {
      const [base, image] = [join(directory, "base.qcow2"), join(directory, "top.qcow2")];
      await createImage(base, "qcow2", { size: 4 * MIB });
      await qemuIo(base, "qcow2", ["write -q -P 1 0 4M"]);
      await createImage(image, "qcow2", {
        size: 6 * MIB + 512,
        backing: { file: "base.qcow2", format: "qcow2" },
      });
      // Zeros as such, and as data.
      const zeros = ["write -q -z 0 1M", "write -q -P 0 1M 1M"];
      await qemuIo(image, "qcow2", [...zeros, "write -q -P 3 6M 512"]);
      await tsimgfs(["commit", "-q", image]);
      const reads = ["read -q -P 0 0 2M", "read -q -P 1 2M 2M", "read -q -P 0 4M 2M"];
      await qemuIo(base, "qcow2", [...reads, "read -q -P 3 6M 512"]);
      expect(asRecord(await imageInfo([base]))["virtual-size"]).toBe(6 * MIB + 512);
      const own = (await ownRuns(base)).map(asRecord);
      expect(own.filter((run) => run["data"] === true && Number(run["start"]) < 2 * MIB)).toEqual(
        [],
      );
      await expectClean(base);
    });
  });

  it("leaves the image alone with -d", async () => {
    await withScratch("commit", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const before = (await run("sha256sum", [chain.image])).stdout;
      await tsimgfs(["commit", "-d", "-q", chain.image]);
      expect((await run("sha256sum", [chain.image])).stdout).toBe(before);
      await expectDisk(chain.pathBelow(0), "qcow2", chain.expected);
    });
  });

  it("commits an image with an external data file", async () => {
    await withScratch("commit", async (directory) => {
      const [base, image] = [join(directory, "base.qcow2"), join(directory, "top.qcow2")];
      await createImage(base, "qcow2", {
        size: MIB,
        options: { data_file: join(directory, "low") },
      });
      await createImage(image, "qcow2", {
        options: { data_file: join(directory, "high") },
        backing: { file: base, format: "qcow2" },
      });
      await qemuIo(image, "qcow2", ["write -q -P 3 0 100k", "write -q -z 512k 64k"]);
      await tsimgfs(["commit", "-q", image]);
      await qemuIo(base, "qcow2", ["read -q -P 3 0 100k", "read -q -P 0 100k 924k"]);
      expect(await ownRuns(image)).toEqual([]);
      await qemuIo(image, "qcow2", ["read -q -P 3 0 100k", "read -q -P 0 100k 924k"]);
      await expectClean(image);
      await expectClean(base);
    });
  });

  it("refuses what it cannot do, in one line, and changes nothing", async () => {
    await withScratch("commit", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const { image } = chain;
      const raw = chain.pathBelow(3);
      const before = (await run("sha256sum", [image])).stdout;
      await expectRefusal(["commit", raw], [`${raw}: has no backing file`]);
      await expectRefusal(["commit", "-b", "no", image], [`${image}: no is not in its backing`]);
      await expectRefusal(["commit", "-b", image, image], ["is not in its backing chain"]);
      await expectRefusal(["commit", "-r", "0x", image], ["-r: 0x is not a size"]);
      await withProgram("qemu-io", ["-r", "-f", "qcow2", chain.pathBelow(0)], async (program) => {
        program.write("read -q 0 512\n");
        await expect.poll(() => program.output).toContain("qemu-io>");
        await expectRefusal(["commit", image], [/high\.qcow2: is in use by qemu-io/]);
        program.write("quit\n");
        await program.end();
      });
      await run("qemu-img", ["snapshot", "-c", "old", image]);
      await expectRefusal(["commit", image], [/its snapshot "old" shows what is below it/]);
      await run("qemu-img", ["snapshot", "-d", "old", image]);
      await chain.expectWhole();
      expect(before).not.toBe("");
    });
  });

  it("stops on a signal, and the same command does the rest", async () => {
    await withScratch("commit", async (directory) => {
      const chain = await makeStreamChain(directory, V3, 40 * MIB);
      // More than one step, whatever else there is.
      await qemuIo(chain.image, "qcow2", ["write -q -P 7 0 12M"]);
      const expected = await open(chain.expected, "r+");
      await expected.write(Buffer.alloc(12 * MIB, 7), 0, 12 * MIB, 0);
      await expected.close();
      const base = chain.pathBelow(3);
      const before = (await stat(base)).mtimeMs;
      const args = [MAIN, "commit", "-r", "1M", "-b", base, chain.image];
      await withProgram(process.execPath, args, async (program) => {
        // The first step is done: signals are heard of.
        await expect
          .poll(async () => (await stat(base)).mtimeMs, { timeout: 20_000 })
          .not.toBe(before);
        program.kill("SIGINT");
        expect(await program.end()).toBe(130);
        expect(program.output).toMatch(
          /: stopped, .* of .* copied; the same command does the rest/,
        );
      });
      await expectDisk(chain.image, "qcow2", chain.expected);
      await tsimgfs(["commit", "-q", "-b", base, chain.image]);
      await run("cmp", [base, chain.expected, "-n", String((await stat(chain.expected)).size)]);
    });
  });

  it("survives being killed at any moment", async () => {
    await withScratch("commit", async (directory) => {
      const random = new Random("killed commit");
      const chain = await makeStreamChain(directory, V3, 24 * MIB);
      for (let kill = 0; kill < byScale(4, 40); kill++) {
        const args = [MAIN, "commit", "-r", "20M", chain.image];
        await withProgram(process.execPath, args, async (program) => {
          await new Promise((resolve) => setTimeout(resolve, random.between(200, 1200)));
          if (program.isRunning) program.kill("SIGKILL");
          await program.end();
        });
        for (const path of [chain.image, chain.pathBelow(0)]) {
          const { verdict, output } = await checkImage(path);
          expect(verdict, output).not.toBe("corrupt");
        }
        await expectDisk(chain.image, "qcow2", chain.expected);
      }
      await tsimgfs(["commit", "-q", chain.image]);
      await expectDisk(chain.pathBelow(0), "qcow2", chain.expected);
      expect(await ownRuns(chain.image)).toEqual([]);
      await expectClean(chain.image);
      expect((await attempt("qemu-img", ["check", chain.pathBelow(0)])).status).toBe(0);
    });
  });
});
