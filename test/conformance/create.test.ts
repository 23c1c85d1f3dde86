// `tsimgfs create` against `qemu-img create`: each option, preallocation in all its company, and combinations at random.

import { stat } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { zeroRuns } from "../support/disk-map.ts";
import { imageMap } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { runJson } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";
import { type CreateCase, type Depth, expectSameAsQemu, titleOf } from "./create-suite.ts";

/** Not a multiple of any cluster size but 512; and what fills clusters of all sizes. */
const ODD_SIZE = "2500000";
const EVEN_SIZE = "4M";

type Options = Readonly<Record<string, string>>;

function cases(options: readonly Options[], rest: Omit<CreateCase, "options">): CreateCase[] {
  return options.map((each) => ({ ...rest, options: each }));
}

/** `it` for each case. */
function itMatches(wanted: readonly CreateCase[], depth: Depth = "by qemu-img"): void {
  for (const each of wanted) it(titleOf(each), () => expectSameAsQemu(each, depth));
}

/** Every choice of an option as a list of options. */
function each(name: string, values: readonly string[]): Options[] {
  return values.map((value) => ({ [name]: value }));
}

describe("create makes what qemu-img create makes, with", () => {
  itMatches(
    cases(
      [
        {},
        ...each("cluster_size", ["512", "1k", "4096", "8K", "16384", "1M", "2M"]),
        ...each("refcount_bits", ["1", "2", "4", "8", "32", "64"]),
        ...each("compat", ["0.10", "v2", "1.1", "v3"]),
        ...each("compression_type", ["zlib", "zstd"]),
        { extended_l2: "on" },
        { lazy_refcounts: "on" },
        { extended_l2: "on", cluster_size: "16k", refcount_bits: "1", compression_type: "zstd" },
        { data_file: "data.raw" },
        { data_file: "data,,with,,commas", data_file_raw: "off" },
        { data_file: "data.raw", data_file_raw: "on", lazy_refcounts: "on" },
        { data_file: "data.raw", data_file_raw: "on", extended_l2: "on" },
      ],
      { size: ODD_SIZE },
    ),
    "and read by tsimgfs",
  );
});

describe("create makes disks of the size", () => {
  const sizes = ["0", "1", "511", "512", "513", "65536", "1.5M", "536870912", "536871424", "5G"];
  itMatches(sizes.map((size) => ({ size, options: {} })));
});

describe("create makes disks as large as qemu-img create does, and no larger", () => {
  const limits: CreateCase[] = [
    { size: "128G", options: { cluster_size: "512" } },
    { size: "137438954000", options: { cluster_size: "512" } },
    { size: "1P", options: { extended_l2: "on" } },
    { size: "2P", options: { extended_l2: "on" } },
    { size: "2P", options: { refcount_bits: "64" } },
    { size: "2251799813685760", options: { refcount_bits: "64" } },
    { size: "7P", options: { cluster_size: "2M" } },
    { size: "7E", options: {} },
  ];
  itMatches(limits, "too large to read");

  it("with tables for all of it: 1 TiB", async () => {
    await withScratch("create-large", async (directory) => {
      const path = join(directory, "new.qcow2");
      await tsimgfs(["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "1T"]);
      const check = await runJson("qemu-img", ["check", "--output", "json", path]);
      expect(check).toMatchObject({ "check-errors": 0, "allocated-clusters": 2 ** 24 });
      expect(zeroRuns(await imageMap([path]))).toEqual([`0+${2 ** 40} zero`]);
      // L2 tables of 128 MiB, refcount blocks of 32 MiB, and little else.
      expect((await stat(path)).blocks * 512).toBeLessThan(162 * 2 ** 20);
    });
  });
});

describe("create makes overlays", () => {
  for (const backing of ["raw", "qcow2"] as const) {
    itMatches(
      cases(
        [
          {},
          { cluster_size: "512" },
          { compat: "0.10", cluster_size: "4k" },
          { data_file: "data.raw" },
        ],
        { size: undefined, backing },
      ),
    );
    itMatches(cases([{}, { extended_l2: "on" }], { size: "1M", backing }));
    itMatches(cases([{}, { extended_l2: "on" }], { size: "8M", backing }));
  }
});

describe("create preallocates", () => {
  for (const preallocation of ["metadata", "falloc", "full"]) {
    const companies: Options[] = [
      {},
      { compat: "0.10" },
      { extended_l2: "on" },
      { lazy_refcounts: "on", refcount_bits: "1" },
      { cluster_size: "512", refcount_bits: "64" },
      { cluster_size: "2M", refcount_bits: "2" },
      { data_file: "data.raw" },
      { data_file: "data.raw", data_file_raw: "on", cluster_size: "1k" },
      { data_file: "data.raw", extended_l2: "on" },
    ];
    const options = companies.map((company) => ({ ...company, preallocation }));
    itMatches(cases(options, { size: EVEN_SIZE }), "and read by tsimgfs");
    itMatches(cases(options.slice(0, 3), { size: ODD_SIZE }));
    itMatches([
      { size: undefined, options: { preallocation, extended_l2: "on" }, backing: "qcow2" },
      { size: undefined, options: { preallocation }, backing: "qcow2" },
    ]);
  }
});

describe("create and qemu-img create agree on combinations", () => {
  const random = new Random("create");
  const sizes = ["0", "1k", "3000000", "4M", "40M", "200M"] as const;
  const choices: Readonly<Record<string, readonly [string, ...string[]]>> = {
    cluster_size: ["512", "1k", "4k", "8k", "16k", "32k", "64k", "256k", "2M", "4M", "3k"],
    compat: ["0.10", "1.1", "1.1", "1.1", "v3"],
    refcount_bits: ["1", "2", "4", "8", "16", "16", "16", "32", "64", "7"],
    extended_l2: ["on", "off"],
    lazy_refcounts: ["on", "off"],
    compression_type: ["zlib", "zstd"],
    data_file: ["data.raw"],
    data_file_raw: ["on", "off"],
    preallocation: ["off", "metadata", "metadata", "falloc", "full"],
  };
  const wanted = new Map<string, CreateCase>();
  while (wanted.size < byScale(20, 400)) {
    const taken = Object.entries(choices).filter(() => random.below(3) === 0);
    const options = Object.fromEntries(taken.map(([name, values]) => [name, random.pick(values)]));
    const real = ["falloc", "full"].includes(options["preallocation"] ?? "");
    const one: CreateCase = {
      // Nothing is gained by filling the disk of the machine.
      size: real ? random.pick(["0", "3000000", "4M"]) : random.pick(sizes),
      options,
      backing: random.pick([undefined, undefined, "raw", "qcow2"]),
    };
    wanted.set(titleOf(one), one);
  }
  itMatches([...wanted.values()]);
});
