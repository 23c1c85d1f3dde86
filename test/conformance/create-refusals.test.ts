// What `tsimgfs create` refuses: whatever qemu-img refuses, in one line, and the file that is there stays as it is.

import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createImage, qemuIo } from "../support/qemu.ts";
import { attempt, run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

/** A directory where create has what it may refer to, and an image that must survive. */
async function furnish(directory: string): Promise<void> {
  await mkdir(directory);
  await createImage(join(directory, "old.qcow2"), "qcow2", { size: 1_048_576 });
  await qemuIo(join(directory, "old.qcow2"), "qcow2", ["write -q -P 7 0 100k"]);
  await createImage(join(directory, "base.qcow2"), "qcow2", { size: 1_048_576 });
  await createImage(join(directory, "base.raw"), "raw", { size: 5120 });
  await createImage(join(directory, "over-old.qcow2"), "qcow2", {
    backing: { file: "old.qcow2", format: "qcow2" },
  });
  await mkdir(join(directory, "directory"));
}

/** The files of a directory, with checksums of their contents. */
async function contentsOf(directory: string): Promise<ReadonlyMap<string, string>> {
  const entries = await readdir(directory, { withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map(({ name }) => name);
  const contents = files.sort().map(async (name) => {
    const bytes = await readFile(join(directory, name));
    return [name, createHash("sha256").update(bytes).digest("hex")] as const;
  });
  return new Map(await Promise.all(contents));
}

/** Refused by tsimgfs, for an image that is there and for one that is not; nothing is changed. */
async function expectRefused(
  directory: string,
  args: readonly string[],
  pattern: RegExp,
): Promise<void> {
  const before = await contentsOf(directory);
  for (const image of ["old.qcow2", "new.qcow2"]) {
    const named = args.map((argument) => argument.replaceAll("IMAGE", image));
    const line = refusalOf(await attemptTsimgfs(["create", ...named], { cwd: directory }));
    expect(line).toMatch(pattern);
    expect(await contentsOf(directory)).toEqual(before);
  }
}

const QCOW2 = ["-f", "qcow2"];
const OVERLAY = [...QCOW2, "-b", "base.qcow2"];

/** Command lines with IMAGE for the image, and what our one line says. */
const REFUSED: readonly (readonly [what: string, args: readonly string[], line: RegExp])[] = [
  ["no size", [...QCOW2, "IMAGE"], /size must be stated/],
  ["no size of a raw image", ["IMAGE"], /size must be stated/],
  ["a size that is none", [...QCOW2, "IMAGE", "many"], /many is not a size/],
  ["a size below 0", [...QCOW2, "IMAGE", "--", "-1"], /-1 is not a size/],
  ["a size above 2^63", ["IMAGE", "8E"], /: 8E is above the limit/],
  [
    "2^63 - 1 as an option",
    [...QCOW2, "-o", "size=9223372036854775807", "IMAGE"],
    /-o size: 9223372036854775807 is above the limit/,
  ],
  ["two sizes", [...QCOW2, "-o", "size=1M", "IMAGE", "1M"], /stated twice/],
  ["an unknown format", ["-f", "qcow3", "IMAGE", "1M"], /qcow3 is not one of/],
  ["too many arguments", [...QCOW2, "IMAGE", "1M", "2M"], /too many arguments/],
  ["an unknown option", [...QCOW2, "-o", "colour=red", "IMAGE", "1M"], /no option "colour"/],
  [
    "a misspelt one",
    [...QCOW2, "-o", "cluster_sze=4k", "IMAGE", "1M"],
    /did you mean cluster_size\?/,
  ],
  ["an option of qcow2 for raw", ["-o", "cluster_size=4k", "IMAGE", "1M"], /raw has no option/],
  ["an empty option", [...QCOW2, "-o", "", "IMAGE", "1M"], /no option ""/],
  ["a list that ends early", [...QCOW2, "-o", "compat=v3,", "IMAGE", "1M"], /no option ""/],
  ["cluster_size 1000", [...QCOW2, "-o", "cluster_size=1000", "IMAGE", "1M"], /not a power of two/],
  ["cluster_size 256", [...QCOW2, "-o", "cluster_size=256", "IMAGE", "1M"], /in 512\.\.2097152/],
  ["cluster_size 4M", [...QCOW2, "-o", "cluster_size=4M", "IMAGE", "1M"], /in 512\.\.2097152/],
  ["cluster_size 0", [...QCOW2, "-o", "cluster_size=0", "IMAGE", "1M"], /not a power of two/],
  ["cluster_size x", [...QCOW2, "-o", "cluster_size=x", "IMAGE", "1M"], /x is not a size/],
  ["refcount_bits 0", [...QCOW2, "-o", "refcount_bits=0", "IMAGE", "1M"], /not a power of two/],
  ["refcount_bits 3", [...QCOW2, "-o", "refcount_bits=3", "IMAGE", "1M"], /not a power of two/],
  ["refcount_bits 128", [...QCOW2, "-o", "refcount_bits=128", "IMAGE", "1M"], /in 1\.\.64/],
  ["refcount_bits 16k", [...QCOW2, "-o", "refcount_bits=16k", "IMAGE", "1M"], /is not a number/],
  ["compat 1.0", [...QCOW2, "-o", "compat=1.0", "IMAGE", "1M"], /1\.0 is not one of/],
  ["lazy_refcounts maybe", [...QCOW2, "-o", "lazy_refcounts=maybe", "IMAGE", "1M"], /on or off/],
  ["compression lz4", [...QCOW2, "-o", "compression_type=lz4", "IMAGE", "1M"], /zlib, zstd/],
  ["preallocation some", [...QCOW2, "-o", "preallocation=some", "IMAGE", "1M"], /is not one of/],
  ["metadata of a raw image", ["-o", "preallocation=metadata", "IMAGE", "1M"], /is not one of/],
  [
    "refcount_bits in version 2",
    [...QCOW2, "-o", "compat=0.10,refcount_bits=8", "IMAGE", "1M"],
    /refcount_bits .* needs compat 1\.1/,
  ],
  [
    "extended_l2 in version 2",
    [...QCOW2, "-o", "compat=v2,extended_l2=on", "IMAGE", "1M"],
    /extended_l2 needs compat 1\.1/,
  ],
  [
    "lazy_refcounts in version 2",
    [...QCOW2, "-o", "compat=0.10,lazy_refcounts=on", "IMAGE", "1M"],
    /lazy_refcounts needs compat 1\.1/,
  ],
  [
    "zstd in version 2",
    [...QCOW2, "-o", "compat=0.10,compression_type=zstd", "IMAGE", "1M"],
    /compression_type zstd needs compat 1\.1/,
  ],
  [
    "a data file in version 2",
    [...QCOW2, "-o", "compat=0.10,data_file=data.raw", "IMAGE", "1M"],
    /data_file needs compat 1\.1/,
  ],
  [
    "extended_l2 with small clusters",
    [...QCOW2, "-o", "extended_l2=on,cluster_size=8k", "IMAGE", "1M"],
    /extended_l2 needs a cluster_size of 16384/,
  ],
  [
    "data_file_raw without a data file",
    [...QCOW2, "-o", "data_file_raw=on", "IMAGE", "1M"],
    /data_file_raw needs a data file/,
  ],
  [
    "data_file_raw with a backing file",
    [...OVERLAY, "-F", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "IMAGE"],
    /data_file_raw cannot be on/,
  ],
  ["an empty data file name", [...QCOW2, "-o", "data_file=", "IMAGE", "1M"], /is empty/],
  ["itself as data file", [...QCOW2, "-o", "data_file=IMAGE", "IMAGE", "1M"], /the image itself/],
  [
    "preallocation with a backing file",
    [...OVERLAY, "-F", "qcow2", "-o", "preallocation=metadata", "IMAGE"],
    /needs extended_l2/,
  ],
  ["a backing file without its format", [...OVERLAY, "IMAGE"], /must be stated \(-F\)/],
  ["the same with -u", [...OVERLAY, "-u", "IMAGE", "1M"], /must be stated \(-F\)/],
  ["a format without a backing file", [...QCOW2, "-F", "raw", "IMAGE", "1M"], /no backing file/],
  ["an empty backing name", [...QCOW2, "-b", "", "-F", "raw", "IMAGE", "1M"], /is empty/],
  ["an unknown backing format", [...OVERLAY, "-F", "qcow3", "IMAGE"], /qcow3 is not one of/],
  ["the wrong backing format", [...QCOW2, "-b", "base.raw", "-F", "qcow2", "IMAGE"], /magic/],
  [
    "a backing file that is not there",
    [...QCOW2, "-b", "no", "-F", "raw", "IMAGE"],
    /no such file/,
  ],
  [
    "the same with a size",
    [...QCOW2, "-b", "no", "-F", "raw", "IMAGE", "1M"],
    /^tsimgfs: no: no such file/,
  ],
  ["-u without a size", [...OVERLAY, "-u", "-F", "qcow2", "IMAGE"], /size must be stated/],
  ["raw with a backing file", ["-b", "base.raw", "-F", "raw", "IMAGE", "1M"], /no backing files/],
  [
    "itself as backing file",
    [...QCOW2, "-b", "IMAGE", "-F", "qcow2", "IMAGE", "1M"],
    /is in its own backing chain/,
  ],
  [
    "itself as backing file, with -u",
    [...QCOW2, "-u", "-b", "IMAGE", "-F", "qcow2", "IMAGE", "1M"],
    /is in its own backing chain/,
  ],
  [
    "names that are too long for the cluster",
    [...QCOW2, "-u", "-b", "b".repeat(377), "-F", "raw", "-o", "cluster_size=512", "IMAGE", "1M"],
    /more than a cluster of 512/,
  ],
  [
    "a backing name of 1024 bytes",
    [...QCOW2, "-u", "-b", "b".repeat(1024), "-F", "raw", "IMAGE", "1M"],
    /name has 1024 bytes, the limit is 1023/,
  ],
  [
    "more preallocation than refcounts can count",
    [...QCOW2, "-o", "preallocation=metadata,cluster_size=512,refcount_bits=64", "IMAGE", "120G"],
    /refcount table/,
  ],
];

/** One directory for each program: what is refused changes nothing in it. */
let root = "";
const ours = (): string => join(root, "ours");
const theirs = (): string => join(root, "theirs");

beforeAll(async () => {
  root = await makeScratch("create-refusals");
  await furnish(ours());
  await furnish(theirs());
});

afterAll(async () => {
  await rm(root, { recursive: true, force: true });
});

describe("create refuses, as qemu-img does,", () => {
  // The last case would keep qemu-img busy for minutes before it fails.
  it.each(REFUSED.slice(0, -1))("%s", async (_what, args, pattern) => {
    await expectRefused(ours(), args, pattern);
    const named = args.map((argument) => argument.replaceAll("IMAGE", "new.qcow2"));
    expect((await attempt("qemu-img", ["create", ...named], { cwd: theirs() })).status).toBe(1);
  });
});

describe("create refuses, whatever qemu-img does,", () => {
  const further: typeof REFUSED = [
    ...REFUSED.slice(-1),
    ["a disk above 2^53", [...QCOW2, "-o", "cluster_size=2M", "IMAGE", "8P"], /2\^53 - 512/],
    ["VDI", ["-f", "vdi", "IMAGE", "1M"], /vdi is not one of raw, qcow2, qed/],
    ["an option without a value", [...QCOW2, "-o", "lazy_refcounts", "IMAGE", "1M"], /=…/],
    [
      "a backing file by protocol",
      [...QCOW2, "-b", "nbd://localhost", "-F", "raw", "IMAGE", "1M"],
      /"nbd:" is not a plain local path/,
    ],
    [
      "a data file by protocol",
      [...QCOW2, "-o", "data_file=json:{}", "IMAGE", "1M"],
      /"json:" is not a plain local path/,
    ],
    [
      "a data file that is the backing file",
      [...OVERLAY, "-F", "qcow2", "-o", "data_file=base.qcow2", "IMAGE"],
      /data file base\.qcow2 is in its backing chain/,
    ],
    ["a missing directory", [...QCOW2, "no/IMAGE", "1M"], /no such directory/],
    ["a directory", [...QCOW2, "directory", "1M"], /directory: is a directory/],
    ["a device without a place for data", ["/dev/null", "1M"], /neither a regular file nor/],
  ];
  it.each(further)("%s", async (_what, args, pattern) => {
    await expectRefused(ours(), args, pattern);
  });

  it("an image that is further down its own chain, by whatever name", async () => {
    await run("ln", ["old.qcow2", "hard.qcow2"], { cwd: ours() });
    await run("ln", ["-s", "old.qcow2", "soft.qcow2"], { cwd: ours() });
    const before = await contentsOf(ours());
    for (const image of ["old.qcow2", "./old.qcow2", "hard.qcow2", "soft.qcow2"]) {
      const args = ["create", ...QCOW2, "-b", "over-old.qcow2", "-F", "qcow2", image];
      const line = refusalOf(await attemptTsimgfs(args, { cwd: ours() }));
      expect(line).toBe(`tsimgfs: ${image}: is in its own backing chain`);
      expect(await contentsOf(ours())).toEqual(before);
    }
  });
});

describe("sizes of create", () => {
  const texts = [
    ...[
      "0",
      "1",
      "512",
      "513",
      "00010",
      "1b",
      "1B",
      "1k",
      "1K",
      "3m",
      "2M",
      "1G",
      "0x200",
      "0X400",
    ],
    ...["1.5k", "1.3k", "1.k", "1.0", "1.0k", "0.0001k", "1.999999999M", "0.7G", "+1M", " 1M"],
    ...["", "x", "k", "1.5", "1.5b", ".5k", "1,5k", "1z", "1kb", "1Kib", "1e3", "1M ", "++1"],
    ...["1 M", "0x", "-1", "18446744073709551616", "9223372036854775808"],
  ];

  it("are understood as qemu-img understands them", async () => {
    for (const text of texts) {
      const paths = [join(theirs(), "size.raw"), join(ours(), "size.raw")] as const;
      const reference = await attempt("qemu-img", ["create", "-q", paths[0], "--", text]);
      const result = await attemptTsimgfs(["create", "-q", paths[1], "--", text]);
      expect(result.status, `status for ${JSON.stringify(text)}`).toBe(reference.status);
      if (result.status === 0) {
        const { stdout } = await run("stat", ["-c", "%s", ...paths]);
        const [wanted, length] = stdout.split("\n");
        expect(length, `length for ${JSON.stringify(text)}`).toBe(wanted);
      }
      await run("rm", ["-f", ...paths]);
    }
  });
});

describe("the options of create", () => {
  it("are listed by -o help, each in the words of qemu-img", async () => {
    for (const format of ["qcow2", "qed", "raw"]) {
      const { stdout } = await tsimgfs(["create", "-f", format, "-o", "help"]);
      const wanted = await run("qemu-img", ["create", "-f", format, "-o", "help", "x.img"]);
      const names = (text: string): string[] => [...text.matchAll(/^ {2}(\w+)=</gm)].map(String);
      expect(names(stdout).length).toBeGreaterThan(1);
      expect(names(wanted.stdout)).toEqual(expect.arrayContaining(names(stdout)));
    }
  });

  it("may come in several lists, and the last of a name counts", async () => {
    const path = join(ours(), "listed.qcow2");
    const lists = ["-o", "cluster_size=512,refcount_bits=1", "-o", "cluster_size=4k"];
    const { stdout } = await tsimgfs(["create", ...QCOW2, ...lists, path, "1M"]);
    expect(stdout).toContain(" cluster_size=4096 ");
    expect(stdout).toContain(" refcount_bits=1\n");
    expect((await tsimgfs(["create", "-q", ...QCOW2, path, "1M"])).stdout).toBe("");
  });
});
