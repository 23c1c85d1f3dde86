// tsimgfs stream beside qemu-img: images of all kinds on mixed chains, refusals, and runs that are stopped.

import { copyFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withProgram } from "../support/foreground.ts";
import { asRecord } from "../support/json.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { makeStreamChain, STREAM_TOPS } from "../support/stream-chains.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean, expectDisk } from "../support/write-images.ts";

const MIB = 2 ** 20;
const [V3] = STREAM_TOPS;

/** The lines that `--output json` printed. */
function linesOf(output: string): Readonly<Record<string, unknown>>[] {
  return output
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => asRecord(JSON.parse(line)));
}

describe.each(STREAM_TOPS)("tsimgfs stream of $name", (top) => {
  it("makes it independent of all that is below", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, top);
      const { stdout } = await tsimgfs(["stream", "--output", "json", chain.image]);
      const last = linesOf(stdout).at(-1);
      expect(last).toMatchObject({ filename: chain.image, state: "done" });
      expect(last?.["done"]).toBe(last?.["total"]);
      await chain.expectStreamed(undefined);
      for (const [index] of chain.below.entries()) await rm(chain.pathBelow(index));
      await expectDisk(chain.image, chain.format, chain.expected);
    });
  });

  it("makes one after the other of those below the backing file", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, top);
      for (const [index, name] of chain.below.entries()) {
        if (index === 0) continue;
        const { stdout } = await tsimgfs(["stream", "--base", chain.pathBelow(index), chain.image]);
        expect(stdout).toMatch(new RegExp(` copied; backing file ${name}\\n$`));
        await chain.expectStreamed(name);
        const format = name.slice(name.lastIndexOf(".") + 1);
        const info = asRecord(await imageInfo([chain.image]));
        // QED can only say that it is raw.
        const isStated = top.format === "qcow2" || format === "raw";
        expect(info["backing-filename-format"]).toBe(isStated ? format : undefined);
      }
      await chain.expectStreamed("base.raw");
      for (let above = 0; above < chain.below.length - 1; above++) await rm(chain.pathBelow(above));
      await expectDisk(chain.image, chain.format, chain.expected);
    });
  });
});

describe("tsimgfs stream", () => {
  it("shows the same as qemu-img rebase does", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const copy = join(directory, "copy.qcow2");
      await copyFile(chain.image, copy);
      await run("qemu-img", ["rebase", "-f", "qcow2", "-b", "low.qed", "-F", "qed", copy]);
      await tsimgfs(["stream", "--base", chain.pathBelow(2), chain.image]);
      await run("qemu-img", ["compare", chain.image, copy]);
      await run("qemu-img", ["rebase", "-f", "qcow2", "-b", "", copy]);
      await tsimgfs(["stream", chain.image]);
      await run("qemu-img", ["compare", chain.image, copy]);
    });
  });

  it("names a base in another directory so that it is found", async () => {
    await withScratch("stream", async (directory) => {
      await run("mkdir", ["-p", join(directory, "a/deep"), join(directory, "b")]);
      const base = join(directory, "b", "odd:name.raw");
      await createImage(base, "raw", { size: MIB });
      await qemuIo(base, "raw", ["write -q -P 3 0 1M"]);
      const mid = join(directory, "b", "mid.qcow2");
      const backing = { file: "./odd:name.raw", format: "raw" } as const;
      await createImage(mid, "qcow2", { backing });
      await qemuIo(mid, "qcow2", ["write -q -P 4 64k 64k"]);
      const image = join(directory, "a/deep/top.qcow2");
      await createImage(image, "qcow2", {
        backing: { file: "../../b/mid.qcow2", format: "qcow2" },
      });
      await tsimgfs(["stream", "--base", "../../b/odd:name.raw", "top.qcow2"], {
        cwd: join(directory, "a/deep"),
      });
      const info = asRecord(await imageInfo([image]));
      expect(info["backing-filename"]).toBe("../../b/odd:name.raw");
      await rm(mid);
      await qemuIo(image, "qcow2", ["read -q -P 4 64k 64k", "read -q -P 3 128k 64k"]);
    });
  });

  it("has nothing to do where the base is the backing file", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const { stdout } = await tsimgfs(["stream", "--base", chain.pathBelow(0), chain.image]);
      expect(stdout).toBe(`${chain.image}: high.qcow2 is its backing file already\n`);
      const args = ["stream", "--output", "json", "--base", chain.pathBelow(0), chain.image];
      const done = { filename: chain.image, state: "done", "copied-bytes": 0 };
      const lines = linesOf((await tsimgfs(args)).stdout);
      expect(lines).toEqual([{ ...done, "backing-filename": "high.qcow2" }]);
      await chain.expectStreamed("high.qcow2");
    });
  });

  it("refuses what it cannot do, in one line, and changes nothing", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const { image } = chain;
      const raw = chain.pathBelow(3);
      const before = (await run("sha256sum", [image])).stdout;
      await expectRefusal(["stream", raw], [`${raw}: has no backing file`]);
      const other = join(directory, "other.raw");
      await writeFile(other, "");
      await expectRefusal(["stream", "--base", other, image], ["other.raw is not in its backing"]);
      await expectRefusal(["stream", "--base", image, image], ["cannot be its own base"]);
      await expectRefusal(["stream", "--base", join(directory, "no"), image], ["no such file"]);
      await expectRefusal(["stream", "--rate", "0", image], ["--rate: 0 is not a rate"]);
      await expectRefusal(["stream", "--backing-policy", "none", image], ["the policy is none"]);
      expect((await run("sha256sum", [image])).stdout).toBe(before);
      await run("qemu-img", ["snapshot", "-c", "old", image]);
      const withSnapshot = (await run("sha256sum", [image])).stdout;
      await expectRefusal(
        ["stream", image],
        [/its snapshot "old" shows what is below it, from offset \d+ on/],
      );
      expect((await run("sha256sum", [image])).stdout).toBe(withSnapshot);
      await chain.expectWhole();
    });
  });

  it("goes beside snapshots that have all themselves, which stay as they are", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      const { image } = chain;
      await tsimgfs(["stream", "--base", chain.pathBelow(3), image]);
      const whole = join(directory, "whole.qcow2");
      await run("qemu-img", ["convert", "-O", "qcow2", "-S", "0", image, whole]);
      await run("qemu-img", ["snapshot", "-c", "whole", whole]);
      await run("qemu-img", ["rebase", "-u", "-b", chain.pathBelow(3), "-F", "raw", whole]);
      const old = join(directory, "old.raw");
      const snapshotIn = async (path: string): Promise<void> => {
        await run("qemu-img", ["convert", "-l", "whole", "-O", "raw", whole, path]);
      };
      await snapshotIn(old);
      await qemuIo(whole, "qcow2", ["write -q -P 9 0 64k", "discard 128k 64k"]);
      await tsimgfs(["stream", whole]);
      const { stdout } = await run("qemu-img", ["info", whole]);
      expect(stdout).not.toContain("backing file");
      const now = join(directory, "now.raw");
      await snapshotIn(now);
      await run("cmp", [old, now]);
      await expectClean(whole);
    });
  });

  it("leaves an image to the QEMU that has it", async () => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3);
      await withProgram("qemu-io", ["-f", "qcow2", chain.image], async (program) => {
        program.write("read -q 0 512\n");
        await expect.poll(() => program.output).toContain("qemu-io>");
        await expectRefusal(["stream", chain.image], [/is in use by qemu-io/]);
        program.write("quit\n");
        await program.end();
      });
      await chain.expectWhole();
    });
  });

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("stops on %s, and goes on from there", async (signal, status) => {
    await withScratch("stream", async (directory) => {
      const chain = await makeStreamChain(directory, V3, 40 * MIB);
      await run("cp", [chain.image, join(directory, "copy.qcow2")]);
      const whole = await tsimgfs(["stream", "--output", "json", join(directory, "copy.qcow2")]);
      const args = [MAIN, "stream", "--output", "json", "--rate", "1M", chain.image];
      let output = "";
      await withProgram(process.execPath, args, async (program) => {
        await expect.poll(() => program.output, { timeout: 20_000 }).toContain("running");
        program.kill(signal);
        expect(await program.end()).toBe(status);
        output = program.output;
      });
      expect(output).toMatch(/tsimgfs: .*: stopped at .* of .*; the same command goes on/);
      const stopped = linesOf(output.replace(/^tsimgfs:.*$/m, "")).at(-1);
      expect(stopped).toMatchObject({ state: "stopped" });
      expect((await checkImage(chain.image)).verdict).toBe("clean");
      await chain.expectWhole();
      const rest = await tsimgfs(["stream", "--output", "json", chain.image]);
      const copied = [stopped, linesOf(rest.stdout).at(-1)].map((line) =>
        Number(line?.["copied-bytes"]),
      );
      const [first = 0, second = 0] = copied;
      expect(first).toBeGreaterThan(0);
      // Nothing twice.
      expect(first + second).toBe(Number(linesOf(whole.stdout).at(-1)?.["copied-bytes"]));
      await chain.expectStreamed(undefined);
    });
  });

  it.each([V3, STREAM_TOPS[4]])("of $name survives being killed at any moment", async (top) => {
    await withScratch("stream", async (directory) => {
      const random = new Random(`killed stream ${top.name}`);
      const chain = await makeStreamChain(directory, top, 24 * MIB);
      for (let kill = 0; kill < byScale(6, 40); kill++) {
        const args = [MAIN, "stream", "--rate", "8M", chain.image];
        await withProgram(process.execPath, args, async (program) => {
          await new Promise((resolve) => setTimeout(resolve, random.between(100, 500)));
          if (program.isRunning) program.kill("SIGKILL");
          await program.end();
        });
        const { verdict, output } = await checkImage(chain.image, chain.format);
        // What was reserved, and what a daemon had copied but not linked, is leaked at the worst.
        expect(verdict, output).not.toBe("corrupt");
        await chain.expectWhole();
      }
      await tsimgfs(["stream", chain.image]).catch(async (error: unknown) => {
        const info = asRecord(await imageInfo([chain.image]));
        // One of those that were to be killed has come to the end.
        if (info["backing-filename"] !== undefined) throw error;
      });
      await chain.expectStreamed(undefined);
    });
  });
});
