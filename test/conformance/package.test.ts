// The package as npm makes and installs it: in a directory of its own, from a registry without a network.

import { mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { PackageRegistry } from "../support/package-registry.ts";
import { convertToRaw, createImage, qemuIo } from "../support/qemu.ts";
import { REPOSITORY } from "../support/repository.ts";
import { type RunResult, run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";

/** Nothing else belongs into it. */
const PACKED = [
  /^(package\.json|README\.md|LICENSE|CHANGELOG\.md)$/,
  /^dist\/package\.json$/,
  /^dist\/[\w/-]+(\.bundle)?\.js$/,
  /^dist\/[\w/-]+\.\w+\.cache$/,
  /^dist\/(errors|library\/[\w-]+)\.d\.ts$/,
  /^dist\/man\/tsimgfs(-\w+)?\.1$/,
  /^dist\/completions\/(tsimgfs\.bash|tsimgfs\.fish|_tsimgfs)$/,
  /^mount-scripts\/u?mount\.tsimgfs$/,
];

/** As strict as a compiler can be, and without the types of Node. */
const COMPILER_OPTIONS = {
  target: "ES2022",
  lib: ["ES2022"],
  types: [],
  module: "NodeNext",
  strict: true,
  exactOptionalPropertyTypes: true,
  noEmit: true,
};

/** Uses all that there is; what must be an error is marked as expected. */
const CONSUMER = `
import { type Errno, type Image, type ImageStats, openImage, TsimgfsError } from "tsimgfs";

export function look(path: string): ImageStats {
  using image: Image = openImage(path, { format: "qcow2", readOnly: false, backingPolicy: "none", secrets: [] });
  const sector: Uint8Array = image.read(new Uint8Array(512), 0);
  image.write(sector, image.virtualSize - 512);
  image.writeZeroes(0, image.clusterSize);
  image.flush();
  const { length, depth, zero, data, present, compressed, hostOffset } = image.blockStatus(0, 4096);
  const known: number | undefined = present && (zero || data || compressed) ? hostOffset : length + depth;
  const warnings: readonly string[] = image.warnings;
  const stats = image.stats();
  const sum: number = stats.file.usedData + stats.guest.data + stats.layers.length + (known ?? warnings.length);
  // @ts-expect-error it is an Image, which cannot be changed
  image.virtualSize = sum;
  // @ts-expect-error a format that there is not
  openImage(path, { format: "vmdk" });
  // @ts-expect-error there is nothing to wait for
  image.read(sector, 0).then();
  return stats;
}

export function codeOf(error: unknown): Errno | undefined {
  return error instanceof TsimgfsError ? error.code : undefined;
}
`;

const REQUIRING = `
import tsimgfs = require("tsimgfs");
export const size: number = tsimgfs.openImage("disk.qcow2").virtualSize;
`;

describe("the package", () => {
  let directory = "";
  let prefix = "";
  let installed = "";
  let packed: readonly string[] = [];
  let registry: PackageRegistry;

  const command = (...args: readonly string[]): Promise<RunResult> =>
    run(join(prefix, "bin/tsimgfs"), args, { cwd: directory });

  beforeAll(async () => {
    directory = await makeScratch("package");
    prefix = join(directory, "prefix");
    installed = join(prefix, "lib/node_modules/tsimgfs");
    registry = await PackageRegistry.start(directory);
    const npm = (...args: readonly string[]): Promise<RunResult> =>
      run("npm", args, {
        cwd: REPOSITORY,
        env: {
          npm_config_cache: join(directory, "cache"),
          npm_config_userconfig: join(directory, "npmrc"),
          npm_config_registry: registry.url,
          npm_config_noproxy: "127.0.0.1",
          npm_config_update_notifier: "false",
        },
      });
    // The tests have what was built.
    const { stdout } = await npm(
      ...["pack", "--json", "--ignore-scripts", "--pack-destination", directory],
    );
    const [pack]: { filename: string; files: { path: string }[] }[] = JSON.parse(stdout);
    packed = pack?.files.map(({ path }) => path) ?? [];
    const file = join(directory, pack?.filename ?? "");
    await npm("install", "--global", file, "--prefix", prefix, "--no-audit", "--no-fund");
    await mkdir(join(directory, "node_modules"));
    await symlink(installed, join(directory, "node_modules/tsimgfs"));
    const base = join(directory, "base.qcow2");
    await createImage(base, "qcow2", { size: 3 * 2 ** 20 + 512 });
    await qemuIo(base, "qcow2", ["write -P 1 100k 700k", "write -P 2 3M 512"]);
    const image = join(directory, "disk.qcow2");
    await createImage(image, "qcow2", { backing: { file: base, format: "qcow2" } });
    await qemuIo(image, "qcow2", ["write -P 3 130k 1M", "write -z 512k 64k"]);
    await convertToRaw(image, "qcow2", join(directory, "expected.raw"));
  });
  afterAll(async () => {
    await registry.stop();
  });

  it("has what runs, and not what it is made of", () => {
    expect(packed).toContain("dist/cli/main.js");
    expect(packed.filter((path) => !PACKED.some((pattern) => pattern.test(path)))).toEqual([]);
  });

  it("installs a command that runs: its version, a conversion, a mount through the helper of mount(8)", async () => {
    const description: { version: string } = JSON.parse(
      await readFile(join(REPOSITORY, "package.json"), "utf8"),
    );
    expect((await command("--version")).stdout).toBe(`${description.version}\n`);
    await command("convert", "-O", "raw", "disk.qcow2", "converted.raw");
    await run("cmp", ["expected.raw", "converted.raw"], { cwd: directory });
    await mkdir(join(directory, "mounted"));
    const helper = join(directory, "mount.fuse.tsimgfs");
    await symlink(join(installed, "mount-scripts/mount.tsimgfs"), helper);
    await run(helper, [join(directory, "disk.qcow2"), join(directory, "mounted"), "-o", "ro"]);
    try {
      await run("cmp", ["expected.raw", "mounted/disk.raw"], { cwd: directory });
    } finally {
      await command("umount", "mounted");
    }
  });

  it("has man pages, which npm installs where man finds them", async () => {
    const description: { man: readonly string[] } = JSON.parse(
      await readFile(join(REPOSITORY, "package.json"), "utf8"),
    );
    const pages = packed.filter((path) => path.startsWith("dist/man/"));
    expect(description.man.map((path) => path.slice("./".length)).sort()).toEqual(pages.sort());
    const env = { MANPATH: join(prefix, "share/man"), MANWIDTH: "80" };
    const { stdout } = await run("man", ["-P", "cat", "tsimgfs-mount"], { env });
    expect(stdout).toMatch(/^TSIMGFS-MOUNT\(1\)/);
    expect((await run("man", ["-w", "tsimgfs-umount"], { env })).stdout).toMatch(
      /tsimgfs-umount\.1$/m,
    );
  });

  it("runs with a code cache that is not of this Node, and without one", async () => {
    const cli = join(installed, "dist/cli");
    const cache = join(cli, `main.${process.arch}.cache`);
    const bytes = await readFile(cache);
    // The hash of the version of V8 is in the first words.
    await writeFile(cache, bytes.fill(0xa5, 0, 64));
    const { stdout, stderr } = await command("--version");
    expect(stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
    expect(stderr).toBe("");
    expect((await command("-v", "list")).stderr).toMatch(
      /^tsimgfs: start: the code cache is not of this Node .*; build anew$/m,
    );
    await run("rm", [cache]);
    expect((await command("--version")).stdout).toBe(stdout);
  });

  it("converts an image with the program in README, as qemu-img does", async () => {
    const readme = await readFile(join(REPOSITORY, "README.md"), "utf8");
    const example = /```js\n([^`]*from "tsimgfs"[^`]*)```/.exec(readme)?.[1] ?? "";
    expect(example.trimEnd().split("\n")).toHaveLength(10);
    await writeFile(join(directory, "to-raw.mjs"), example);
    await run(process.execPath, ["to-raw.mjs", "disk.qcow2", "by-program.raw"], { cwd: directory });
    await run("cmp", ["expected.raw", "by-program.raw"], { cwd: directory });
  });

  it("can be required", async () => {
    const program = `const { openImage } = require("tsimgfs"); console.log(openImage("disk.qcow2").virtualSize);`;
    const { stdout } = await run(process.execPath, ["-e", program], { cwd: directory });
    expect(stdout).toBe(`${3 * 2 ** 20 + 512}\n`);
  });

  it("has types that stand alone, for import and require", async () => {
    await writeFile(join(directory, "consumer.mts"), CONSUMER);
    await writeFile(join(directory, "requiring.cts"), REQUIRING);
    const config = { compilerOptions: COMPILER_OPTIONS, files: ["consumer.mts", "requiring.cts"] };
    await writeFile(join(directory, "tsconfig.json"), JSON.stringify(config));
    await run(join(REPOSITORY, "node_modules/.bin/tsc"), ["-p", directory], { cwd: directory });
  });
});
