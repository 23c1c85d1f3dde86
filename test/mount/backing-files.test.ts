// Backing and data files that must not be opened, cannot be opened, or never end.

import { copyFile, mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { missingOrDifferent } from "../support/json.ts";
import { mounted, refusedMount } from "../support/mounted.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { MAIN } from "../support/repository.ts";
import { run, runJson } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { itMainly, itOnce } from "../support/transport.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

describe("backing files", () => {
  let directory = "";
  let base: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("backing");
    base = await makeSample(directory, "base.qcow2");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** An overlay that names a backing file which qemu-img does not look at. */
  async function overlayOf(name: string, backing: string, format = "qcow2"): Promise<string> {
    const path = join(directory, name);
    const args = ["create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", format, path, "1M"];
    await run("qemu-img", args);
    return path;
  }

  const FOREIGN_NAMES = [
    'json:{"driver":"file","filename":"/etc/passwd"}',
    "nbd://127.0.0.1:1/disk",
    "nbd:unix:/run/no.sock",
    "https://127.0.0.1:1/disk.raw",
    "file:/etc/passwd",
    "fat:rw:/etc",
    "host_device:/dev/null",
  ] as const;

  itOnce.each(FOREIGN_NAMES)("named %s are refused by that name", async (name) => {
    const path = await overlayOf("foreign.qcow2", name, "raw");
    const line = await refusedMount([path]);
    expect(line).toContain(name);
    expect(line).toContain("foreign.qcow2");
  });

  itOnce.each(FOREIGN_NAMES)("named %s are shown by info, which opens nothing", async (name) => {
    const path = await overlayOf("foreign-info.qcow2", name, "raw");
    const actual = await runJson(process.execPath, [MAIN, "info", "--output", "json", path]);
    const wanted = await imageInfo([path]);
    expect(missingOrDifferent(actual, wanted)).toEqual([]);
  });

  itOnce("that are missing are named, and info without --backing-chain does not mind", async () => {
    const path = await overlayOf("orphan.qcow2", "gone.qcow2");
    expect(await refusedMount([path])).toMatch(/gone\.qcow2: .*no such file/i);
    await tsimgfs(["info", path]);
  });

  itOnce("that are directories or broken images are named", async () => {
    await mkdir(join(directory, "folder"));
    expect(await refusedMount([await overlayOf("on-folder.qcow2", "folder")])).toContain("folder");
    await run("cp", ["/etc/hostname", join(directory, "text.qcow2")]);
    expect(await refusedMount([await overlayOf("on-text.qcow2", "text.qcow2")])).toContain(
      "text.qcow2",
    );
  });

  itOnce("that lead back to the image are recognised as a loop", async () => {
    const itself = await overlayOf("itself.qcow2", "itself.qcow2");
    expect(await refusedMount([itself])).toMatch(/itself\.qcow2: .*(loop|chain|again)/);
    const first = await overlayOf("first.qcow2", "second.qcow2");
    await overlayOf("second.qcow2", "third.qcow2");
    await overlayOf("third.qcow2", "first.qcow2");
    expect(await refusedMount([first])).toMatch(/(loop|chain|again)/);
  });

  itOnce("that lead back through another name of the same file are recognised too", async () => {
    const path = await overlayOf("linked.qcow2", "hard-link.qcow2");
    await run("ln", [path, join(directory, "hard-link.qcow2")]);
    expect(await refusedMount([path])).toMatch(/(loop|chain|again)/);
  });

  itMainly("may lie 60 deep, and not 70", async () => {
    await makeSample(directory, "deep-0.qcow2", { size: 1_048_576 });
    for (let depth = 1; depth <= 70; depth++) {
      await overlayOf(`deep-${depth}.qcow2`, `deep-${depth - 1}.qcow2`);
    }
    const good = join(directory, "deep-60.qcow2");
    await mounted([good], {}, async (mount) => {
      const expected = join(directory, "deep-0.qcow2.expected");
      await expectSameBytes(mount.device(good), expected, "60 deep");
    });
    expect(await refusedMount([join(directory, "deep-70.qcow2")])).toMatch(/\b64\b/);
  });

  it("are all refused by --backing-policy none", async () => {
    const path = await overlayOf("plain.qcow2", "base.qcow2");
    const args = ["--backing-policy", "none"];
    expect(await refusedMount([path], { args })).toMatch(/base\.qcow2/);
    await mounted([base.path], { args }, async (mount) => {
      await expectSameBytes(mount.device(base.path), base.expected, "no backing file");
    });
  });

  it("elsewhere are refused by --backing-policy same-directory", async () => {
    const args = ["--backing-policy", "same-directory"];
    await mkdir(join(directory, "elsewhere"));
    await copyFile(base.path, join(directory, "elsewhere/base.qcow2"));
    for (const name of ["elsewhere/base.qcow2", join(directory, "elsewhere/base.qcow2"), "../x"]) {
      const path = await overlayOf("policy.qcow2", name);
      expect(await refusedMount([path], { args })).toContain(name);
    }
    for (const name of ["base.qcow2", "./base.qcow2", base.path]) {
      const path = await overlayOf("policy-good.qcow2", name);
      await mounted([path], { args }, async () => {});
    }
  });

  itOnce(
    "elsewhere behind a link here are refused by --backing-policy same-directory",
    async () => {
      await mkdir(join(directory, "hidden"));
      await copyFile(base.path, join(directory, "hidden/base.qcow2"));
      await run("ln", ["-s", "hidden/base.qcow2", join(directory, "innocent.qcow2")]);
      const path = await overlayOf("by-link.qcow2", "innocent.qcow2");
      const args = ["--backing-policy", "same-directory"];
      expect(await refusedMount([path], { args })).toContain("innocent.qcow2");
    },
  );

  it("are found relative to the image, wherever the command runs", async () => {
    const path = await overlayOf("relative.qcow2", "base.qcow2");
    const expected = join(directory, "relative.expected");
    await run("qemu-img", ["convert", "-O", "raw", path, expected]);
    const { stdout } = await run("sh", [
      "-c",
      `cd / && "$0" "$1" info "$2"`,
      process.execPath,
      MAIN,
      path,
    ]);
    expect(stdout).toContain("backing file: base.qcow2");
    await mounted([path], {}, async (mount) => {
      await expectSameBytes(mount.device(path), expected, "relative name");
    });
  });

  itOnce("whose policy is unknown are refused with the policies that exist", async () => {
    const line = await refusedMount([base.path], { args: ["--backing-policy", "all"] });
    expect(line).toMatch(/any.*same-directory.*none/);
  });
});

describe("external data files", () => {
  let directory = "";

  beforeAll(async () => {
    directory = await makeScratch("data-files");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  async function withDataFile(name: string): Promise<string> {
    const path = join(directory, `${name}.qcow2`);
    const data = join(directory, `${name}.data`);
    await createImage(path, "qcow2", { size: 1_048_576, options: { data_file: data } });
    await qemuIo(path, "qcow2", ["write -q -P 5 64k 128k"]);
    return path;
  }

  itOnce("that are missing are named", async () => {
    const path = await withDataFile("missing");
    await rm(join(directory, "missing.data"));
    expect(await refusedMount([path])).toMatch(/missing\.data/);
    await tsimgfs(["info", path]);
  });

  it("are opened under the policy of backing files", async () => {
    const path = await withDataFile("policy");
    const none = ["--backing-policy", "none"];
    expect(await refusedMount([path], { args: none })).toMatch(/policy\.data/);
    await mounted([path], { args: ["--backing-policy", "same-directory"] }, async () => {});
  });

  itOnce.each(['json:{"driver":"file","filename":"/etc/passwd"}', "nbd:unix:/run/no.sock"])(
    "named %s are refused by that name",
    async (name) => {
      const path = await withDataFile("foreign");
      const value = name.replaceAll(",", ",,"); // In a list of options a comma is written twice.
      await run("qemu-img", ["amend", "-o", `data_file=${value}`, path]);
      expect(await refusedMount([path])).toContain(name);
    },
  );

  it("with a relative name are found beside the image", async () => {
    const path = await withDataFile("relative");
    const expected = join(directory, "relative.expected");
    await run("qemu-img", ["convert", "-O", "raw", path, expected]);
    await run("qemu-img", ["amend", "-o", "data_file=relative.data", path]);
    await mounted([path], {}, async (mount) => {
      await expectSameBytes(mount.device(path), expected, "relative data file");
    });
  });
});
