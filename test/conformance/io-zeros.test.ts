// `write -z` of `tsimgfs io`: zeros are written, read back, and are no data in the image any more, by qemu-img too.

import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameDisk, ioBesideQemu, kindsOf } from "../support/io-beside-qemu.ts";
import { createImage, type ImageFormat, qemuIo } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;

/** What becomes of a middle of data that is zeroed, in the words of `kindsOf`. */
interface Sample {
  readonly name: string;
  readonly format: ImageFormat;
  readonly options?: Readonly<Record<string, string | number>>;
  /** undefined: as the host's file system likes. */
  readonly kept: string | undefined;
  readonly unmapped: string;
  /** What `alloc` says of the megabyte when it is unmapped. */
  readonly allocated: number;
}

const ZERO_CLUSTER = "image 0: no data, zeros";

const SAMPLES: readonly Sample[] = [
  {
    name: "v3",
    format: "qcow2",
    kept: ZERO_CLUSTER,
    unmapped: ZERO_CLUSTER,
    allocated: MIB,
  },
  {
    name: "sub-clusters",
    format: "qcow2",
    options: { extended_l2: "on" },
    kept: ZERO_CLUSTER,
    unmapped: ZERO_CLUSTER,
    allocated: MIB,
  },
  {
    // It has no zero clusters: nothing at all, or a place.
    name: "v2",
    format: "qcow2",
    options: { compat: "0.10" },
    kept: "image 0: data",
    unmapped: "nothing: no data, zeros",
    allocated: 0,
  },
  {
    // Every byte of a raw image is its own; what is no data is a hole.
    name: "raw",
    format: "raw",
    kept: undefined,
    unmapped: ZERO_CLUSTER,
    allocated: MIB,
  },
  {
    // Clusters of data stay what they are: QED cannot give them back.
    name: "QED",
    format: "qed",
    kept: "image 0: data",
    unmapped: "image 0: data",
    allocated: MIB,
  },
];

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("io-zeros");
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe.each(SAMPLES)("write -z on $name", (sample) => {
  const { name, format, options = {} } = sample;

  async function dataImage(label: string): Promise<string> {
    const path = join(directory, `${name} ${label}.${format}`);
    await createImage(path, format, { size: 4 * MIB, options });
    await qemuIo(path, format, ["write -P 5 0 4M"]);
    return path;
  }

  it("on nothing is what it is by qemu-io", async () => {
    const paths = ["ours", "theirs"].map((label) => join(directory, `${name} ${label}.${format}`));
    for (const path of paths) await createImage(path, format, { size: 4 * MIB, options });
    const [ours = "", theirs = ""] = paths;
    await tsimgfs(["io", "-f", format, "-c", "write -qz 1M 1M", "-c", "read -qP 0 0 4M", ours]);
    await qemuIo(theirs, format, ["write -z 1M 1M"]);
    await expectSameDisk(format, { ours, theirs });
    // Of a raw image only the host's file system knows.
    if (sample.kept === undefined) return;
    expect(await kindsOf(ours, format)).toEqual(await kindsOf(theirs, format));
  });

  it("reads as zeros afterwards, and what is around it stays", async () => {
    const path = await dataImage("bytes");
    await ioBesideQemu(path, { format }, [
      ...["write -z 1M 1M", "read -P 0 1M 1M", "read -P 5 0 1M", "read -P 5 2M 2M"],
      ...["write -zu 3M 512k", "read -P 0 3M 512k", "write -z 100 1000", "read -P 0 100 1000"],
      ...["write -zu 70000 60000", "read -P 5 1100 68900", "read -P 0 70000 60000"],
      "read -P 5 130000 918576",
    ]);
  });

  it.each([
    ["-z", "kept", "kept"],
    ["-zu", "unmapped", "unmapped"],
  ] as const)("with %s is %s, and no data for qemu-img", async (flags, label, key) => {
    const path = await dataImage(label);
    const { stdout } = await tsimgfs([
      ...["io", "-f", format, "-c", `write -q ${flags} 1M 1M`, "-c", "alloc 1M 1M"],
      ...["-c", "read -q -P 0 1M 1M", path],
    ]);
    const kinds = await kindsOf(path, format);
    const middle = sample[key];
    if (middle === "image 0: data") expect(kinds).toEqual([`${4 * MIB} ${middle}`]);
    else if (middle !== undefined) {
      const around = "image 0: data";
      expect(kinds).toEqual([`${MIB} ${around}`, `${MIB} ${middle}`, `${2 * MIB} ${around}`]);
    }
    const allocated = key === "unmapped" ? sample.allocated : MIB;
    expect(stdout).toBe(`${allocated}/${MIB} bytes allocated at offset 1 MiB\n`);
    await qemuIo(path, format, ["read -P 5 0 1M", "read -P 0 1M 1M", "read -P 5 2M 2M"]);
    if (format !== "raw") await run("qemu-img", ["check", "-f", format, path]);
  });
});

describe("write -z over a backing file", () => {
  it.each([
    ["qcow2", {}],
    ["qcow2", { extended_l2: "on" }],
    ["qed", {}],
  ] as const)("makes zero clusters as qemu-io does: %s %j", async (format, options) => {
    const base = join(directory, "below.raw");
    await createImage(base, "raw", { size: 4 * MIB });
    await qemuIo(base, "raw", ["write -P 9 0 4M"]);
    const path = join(directory, `overlay.${format}`);
    await createImage(path, format, { options, backing: { file: base, format: "raw" } });
    const pair = await ioBesideQemu(path, { format }, [
      ...["write -z 1M 1M", "write -P 1 2M 64k", "write -z 2100k 300k", "map", "alloc 0 4M"],
      ...["read -P 9 0 1M", "read -P 0 1M 1M", "read -P 1 2M 52k", "read -P 0 2100k 300k"],
      ...["read -P 9 2400k 1696k", "discard 3M 512k", "read -v 3145728 16", "map"],
    ]);
    await expectSameDisk(format, pair);
    expect(await kindsOf(pair.ours, format)).toEqual(await kindsOf(pair.theirs, format));
    expect(await kindsOf(pair.ours, format)).toContain(`${MIB} ${ZERO_CLUSTER}`);
  });
});

describe("write -zn", () => {
  it("fails as qemu-io does where zeros would have to be written", async () => {
    const path = join(directory, "fallback.qcow2");
    const base = join(directory, "base.raw");
    await createImage(base, "raw", { size: MIB });
    await qemuIo(base, "raw", ["write -P 9 0 1M"]);
    const backing = { file: base, format: "raw" } as const;
    await createImage(path, "qcow2", { options: { compat: "0.10" }, backing });
    const { result } = await ioBesideQemu(path, { format: "qcow2" }, [
      ...["write -zn 0 64k", "write -znu 0 64k", "read -P 9 0 1M", "write -z 0 64k"],
      ...["read -P 0 0 64k", "read -P 9 64k 960k"],
    ]);
    expect(result.stdout).toMatch(/^(write failed: Operation not supported\n){2}/);
    expect(result.stderr).toMatch(/^tsimgfs: .*fallback\.qcow2\.ours: zeros must be written/);
  });

  it("has no limit on the length", async () => {
    const path = join(directory, "large.qcow2");
    await createImage(path, "qcow2", { size: 8 * 1024 * MIB });
    const { result } = await ioBesideQemu(path, { format: "qcow2" }, [
      ...["write -q 4G 64k", "write -zn 0 8G", "read -P 0 4G 64k", "write -z 0 8G"],
    ]);
    expect(result.stdout).toMatch(/^wrote 8589934592\/8589934592 bytes at offset 0\n/);
    expect(result.stdout).toMatch(/length cannot exceed 2147483136 without -n, given 8G\n$/);
  });
});
