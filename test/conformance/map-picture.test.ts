// The command `map --picture`: its sums beside qemu-img map and check, where it writes, and what it refuses.

import {
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DamageImage } from "../support/damage-image.ts";
import { REPAIRABLE } from "../support/damage-kinds.ts";
import { asArray, asRecord, numberIn } from "../support/json.ts";
import { createImage, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const MiB = 2 ** 20;
const CLUSTER = 65536;

let directory: string;
let base: string;
let image: string;

beforeAll(async () => {
  directory = await makeScratch("map-picture");
  base = join(directory, "base.qcow2");
  await createImage(base, "qcow2", { size: 24 * MiB });
  await qemuIo(base, "qcow2", ["write -P 1 0 3M", "write -z 4M 1M", "write -c -P 2 6M 64k"]);
  image = join(directory, "top.qcow2");
  await createImage(image, "qcow2", { size: 32 * MiB, backing: { file: base, format: "qcow2" } });
  const writes = [
    "write -P 3 2M 1M",
    "write -P 4 1M 64k",
    "write -z 9M 2M",
    "write -c -P 5 8M 64k",
  ];
  await qemuIo(image, "qcow2", writes);
  await run("qemu-img", ["snapshot", "-c", "before", image]);
  await qemuIo(image, "qcow2", ["write -P 6 2M 512k", "write -P 7 20M 5M"]);
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Bytes of each class on the disk and in the file, as the picture's description has them. */
async function sumsOf(path: string): Promise<Map<string, readonly number[]>> {
  const { stdout } = await tsimgfs(["map", "--picture", "-", path]);
  const text = /<desc>[^<]*Bytes in disk \/ image file: ([^<]*)\.<\/desc>/.exec(stdout)?.[1] ?? "";
  return new Map(
    text.split(", ").map((entry) => {
      const [name = "", disk, , file] = entry.split(" ");
      return [name, [Number(disk), Number(file)]];
    }),
  );
}

describe("the sums of a picture", () => {
  it("are those of qemu-img map", async () => {
    const sums = await sumsOf(image);
    const disk = (name: string): number => sums.get(name)?.[0] ?? 0;
    const wanted = { stored: 0, zero: 0, backing: 0, unallocated: 0 };
    for (const row of asArray(await imageMap([image])).map(asRecord)) {
      const kind =
        row["present"] !== true
          ? "unallocated"
          : row["depth"] !== 0
            ? "backing"
            : row["zero"] === true
              ? "zero"
              : "stored";
      wanted[kind] += numberIn(row, "length");
    }
    expect({
      stored: disk("data") + disk("compressed"),
      zero: disk("zero"),
      backing: disk("backing"),
      unallocated: disk("unallocated"),
    }).toEqual(wanted);
    expect(disk("compressed")).toBe(CLUSTER);
  });

  it("have what snapshots keep, and add up to the file", async () => {
    const sums = await sumsOf(image);
    expect(sums.get("snapshot")?.[1]).toBe(MiB / 2);
    const file = [...sums.values()].reduce((sum, [, bytes]) => sum + (bytes ?? 0), 0);
    expect(file).toBe(readFileSync(image).length);
  });

  it("have the holes of a raw disk that qemu-img map sees", async () => {
    const path = join(directory, "sparse.raw");
    await createImage(path, "raw", { size: 8 * MiB });
    await qemuIo(path, "raw", ["write -P 1 0 64k", "write -P 2 1M 300k", "write -P 3 7M 1M"]);
    const rows = asArray(await imageMap(["-f", "raw", path])).map(asRecord);
    const zeros = rows.filter((row) => row["zero"] === true);
    const holes = zeros.reduce((sum, row) => sum + numberIn(row, "length"), 0);
    expect(holes).toBeGreaterThan(0);
    const sums = await sumsOf(path);
    expect(sums.get("hole")).toEqual([holes, holes]);
    expect(sums.get("data")).toEqual([8 * MiB - holes, 8 * MiB - holes]);
  });

  it.each(["qcow2", "qed"] as const)("have qemu-img check's fragments, %s", async (format) => {
    const path = join(directory, `shuffled.${format}`);
    await createImage(path, format, { size: 8 * MiB });
    const random = new Random(`fragments of ${format}`);
    const left = Array.from({ length: 100 }, (_, index) => index);
    const writes: string[] = [];
    while (left.length > 0) {
      // Some of them go on where the one before ended.
      const at = random.below(left.length);
      const clusters = left.splice(at, random.between(1, 3));
      writes.push(...clusters.map((cluster) => `write ${cluster * 64}k 64k`));
    }
    await qemuIo(path, format, writes);
    const { stdout } = await run("qemu-img", ["check", "--output", "json", path]);
    const fragments = numberIn(asRecord(JSON.parse(stdout)), "fragmented-clusters");
    const picture = (await tsimgfs(["map", "--picture", path])).stdout;
    expect(picture).toContain(`the order in the file breaks ${fragments} times`);
  });

  it.each(["qcow2", "qed"])("have the leaked clusters of qemu-img check, %s", async (format) => {
    const path = join(directory, `leaks.${format}`);
    if (format === "qcow2") {
      const damaged = new DamageImage(readFileSync(image));
      REPAIRABLE["leaked clusters behind the end"]?.(damaged, new Random("leaks"));
      writeFileSync(path, damaged.bytes);
    } else {
      await createImage(path, "qed", { size: 8 * MiB });
      await qemuIo(path, "qed", ["write 0 1M", "write 5M 64k"]);
      writeFileSync(path, Buffer.concat([readFileSync(path), Buffer.alloc(3 * CLUSTER)]));
    }
    const { stdout } = await attempt("qemu-img", ["check", "--output", "json", path]);
    const leaks = numberIn(asRecord(JSON.parse(stdout)), "leaks");
    expect(leaks).toBeGreaterThan(0);
    expect((await sumsOf(path)).get("leaked")?.[1]).toBe(leaks * CLUSTER);
  });
});

describe("where a picture goes", () => {
  it("the same image gives the same bytes, in files and on standard output", async () => {
    const other = join(directory, "other");
    mkdirSync(other);
    const link = join(other, "top.qcow2");
    linkSync(image, link);
    const outputs: Buffer[][] = [];
    for (const path of [image, link]) {
      const files = ["a.svg", "b.PNG", "c.png"].map((name) => join(other, name));
      const [svg = "", png = "", dark = ""] = files;
      writeFileSync(svg, "x".repeat(MiB));
      await tsimgfs(["map", "--picture", svg, path]);
      await tsimgfs(["map", `--picture=${png}`, path]);
      await tsimgfs(["map", path, "--picture", dark, "--dark"]);
      outputs.push(files.map((file) => readFileSync(file)));
    }
    const [svg, png, dark] = outputs[0] ?? [];
    const isSame = [svg, png, dark].map((bytes, index) => {
      return outputs[1]?.[index]?.equals(bytes ?? Buffer.alloc(0));
    });
    expect(isSame).toEqual([true, true, true]);
    expect(png?.equals(dark ?? Buffer.alloc(0))).toBe(false);
    expect(svg?.toString()).toBe((await tsimgfs(["map", "--picture", "-", image])).stdout);
  });

  it("letters where there is no terminal, whatever the order of the words", async () => {
    const { stdout } = await tsimgfs(["map", "--picture", image]);
    expect(stdout).toMatch(/^top\.qcow2\nqcow2, virtual size 32 MiB/);
    expect(stdout).toMatch(/^ {5}0 B B+[Dd]/m);
    expect((await tsimgfs(["map", image, "--picture"])).stdout).toBe(stdout);
  });

  it("half-blocks of its width on a terminal, letters if NO_COLOR is set", async () => {
    const show = async (env: Readonly<Record<string, string>>): Promise<string> => {
      const command = `stty cols 50; ${process.execPath} ${MAIN} map --picture ${image}`;
      const options = { env: { TERM: "xterm", ...env } };
      return (await run("script", ["-qec", command, "/dev/null"], options)).stdout;
    };
    const colours = await show({ NO_COLOR: "" });
    expect(colours).toContain(" 0 B \u001b[38;5;");
    const blocks = colours.split("\r\n").map((line) => line.match(/\u2580/g)?.length ?? 0);
    expect(Math.max(...blocks)).toBe(40);
    const letters = await show({ NO_COLOR: "1" });
    expect(letters).not.toContain("\u001b[38");
    expect(letters).toMatch(/^ {5}0 B B+[Dd]/m);
  });
});

describe("what is refused", () => {
  it("a picture in the place of the image, or of what it refers to", async () => {
    const disk = join(directory, "disk.png");
    writeFileSync(disk, Buffer.alloc(MiB, 1));
    const link = join(directory, "link.svg");
    symlinkSync(disk, link);
    const hard = join(directory, "hard.svg");
    linkSync(base, hard);
    for (const [picture, path] of [
      [disk, disk],
      [link, disk],
      [hard, image],
    ] as const) {
      const before = readFileSync(path);
      const args = ["map", ...(path === disk ? ["-f", "raw"] : []), "--picture", picture, path];
      await expectRefusal(args, [/is the image itself, or what it refers to: not overwritten/]);
      expect(readFileSync(path).equals(before)).toBe(true);
    }
    expect(readFileSync(base).equals(readFileSync(hard))).toBe(true);
  });

  it("names, options and places that make no sense, in one line", async () => {
    const svg = join(directory, "never.svg");
    await expectRefusal(["map", "--picture", "x.jpg", image], [/x\.jpg is named neither/]);
    await expectRefusal(["map", "--picture", svg], [/missing required argument 'image'/]);
    await expectRefusal(["map", "--picture", "-"], [/missing required argument 'image'/]);
    await expectRefusal(["map", "--picture", svg, "--output", "json", image], [/--output json/]);
    await expectRefusal(["map", "--picture", svg, "-s", "1M", image], [/--start-offset/]);
    await expectRefusal(["map", "--picture", svg, "-l", "1M", image], [/--max-length/]);
    await expectRefusal(["map", "--dark", image], [/--dark: is for pictures/]);
    const nowhere = join(directory, "none", "x.png");
    await expectRefusal(
      ["map", "--picture", nowhere, image],
      [/x\.png: cannot be written: ENOENT/],
    );
    const folder = join(directory, "folder.svg");
    mkdirSync(folder);
    await expectRefusal(["map", "--picture", folder, image], [/folder\.svg: is not a file/]);
    await expectRefusal(["map", "--picture", "/dev/full.svg", `${image}.none`], [/no such file/]);
    expect(existsSync(svg)).toBe(false);
  });

  it("an image that is damaged, and the picture that was there stays", async () => {
    const damaged = join(directory, "damaged.qcow2");
    writeFileSync(damaged, readFileSync(image).subarray(0, 3 * CLUSTER));
    const picture = join(directory, "old.svg");
    writeFileSync(picture, "old");
    await expectRefusal(["map", "--picture", picture, damaged], [/damaged\.qcow2: /]);
    writeFileSync(damaged, readFileSync(image).subarray(0, 50));
    await expectRefusal(["map", "--picture", picture, damaged], [/damaged\.qcow2: /]);
    expect(readFileSync(picture, "utf8")).toBe("old");
  });

  it("is explained, as the rest is", async () => {
    const { stdout } = await tsimgfs(["map", "--help"]);
    expect(stdout).toContain("tsimgfs map [options] <image>");
    expect(stdout).toContain("tsimgfs map --picture vm.svg vm.qcow2");
  });
});
