/** Sizes as qemu-img prints them, with qemu-img beside it. */

import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { sizeText } from "../../../src/cli/size-text.ts";
import { Random } from "../../support/random.ts";
import { run } from "../../support/run.ts";

const hasQemuImg = spawnSync("qemu-img", ["--version"]).status === 0;

/** What qemu-img calls a disk of this many bytes, a multiple of 512. */
async function qemuText(bytes: number): Promise<string | undefined> {
  const source = `driver=null-co,read-zeroes=on,size=${bytes}`;
  const { stdout } = await run("qemu-img", ["info", "--image-opts", source]);
  return /^virtual size: (.*) \(\d+ bytes\)$/m.exec(stdout)?.[1];
}

describe("sizeText", () => {
  // Seen from qemu-img 7.2.
  it.each([
    [0, "0 B"],
    [1, "1 B"],
    [512, "512 B"],
    [999, "999 B"],
    [1000, "0.977 KiB"],
    [1024, "1 KiB"],
    [1536, "1.5 KiB"],
    [196616, "192 KiB"],
    [1024 * 1024, "1 MiB"],
    [10 * 1024 ** 3, "10 GiB"],
    [1.5 * 1024 ** 4, "1.5 TiB"],
    [1000 * 1024 ** 3, "0.977 TiB"],
    [2 ** 53 - 512, "8 PiB"],
  ])("of %i is %s", (bytes, text) => {
    expect(sizeText(bytes)).toBe(text);
  });

  it.skipIf(!hasQemuImg)(
    "is what qemu-img prints, near every change of unit and at random",
    async () => {
      const random = new Random("size text");
      const sizes = [1000 * 1024, 1023488, 999 * 1024, 1000 * 1024 ** 2 - 512, 1023.5 * 1024 ** 3];
      for (let round = 0; round < 12; round++) {
        sizes.push(Math.floor((random.below(2 ** 30) * 2 ** random.below(22)) / 512) * 512);
      }
      const texts = await Promise.all(sizes.map(qemuText));
      // What rounds up to a thousand, printf writes as a power; we write the number.
      expect(sizes.map(sizeText)).toEqual(texts.map((text) => text?.replace("1e+03", "1000")));
    },
  );
});
