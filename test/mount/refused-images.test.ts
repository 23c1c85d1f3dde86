// What cannot be mounted: each refusal is one line, exit status 1, and leaves nothing mounted.

import { mkdir, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { createEncryptedImage } from "../support/encrypted-image.ts";
import { mounted, refusedMount } from "../support/mounted.ts";
import { convertToRaw } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { itOnce } from "../support/transport.ts";
import { expectRefusal } from "../support/tsimgfs.ts";

describe("refused mounts", () => {
  let directory = "";
  let sample: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("refused");
    sample = await makeSample(directory, "vm.qcow2");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  itOnce("of an image that is not there name it", async () => {
    const path = join(directory, "missing.qcow2");
    expect(await refusedMount([path])).toMatch(/missing\.qcow2: .*no such file/i);
    await expectRefusal(["info", path], [/missing\.qcow2: .*no such file/i]);
    await expectRefusal(["map", path], [/missing\.qcow2: .*no such file/i]);
  });

  itOnce("of several images because of one name that one", async () => {
    const path = join(directory, "missing.qcow2");
    expect(await refusedMount([sample.path, path])).toContain("missing.qcow2: ");
  });

  itOnce("of a directory as image say so", async () => {
    const path = join(directory, "directory.raw");
    await mkdir(path);
    expect(await refusedMount([path])).toMatch(/directory\.raw: .*directory/);
    await expectRefusal(["info", path], [/directory\.raw: .*directory/]);
  });

  itOnce("of a socket, pipe or character device as image do not hang", async () => {
    const pipe = join(directory, "pipe.raw");
    await run("mkfifo", [pipe]);
    expect(await refusedMount([pipe])).toContain("pipe.raw");
    expect(await refusedMount(["/dev/zero"], { args: ["--format", "raw"] })).toContain("/dev/zero");
  });

  it("on a mount point that is not there name it", async () => {
    const mountPoint = join(directory, "nowhere");
    const line = await refusedMount([sample.path], { mountPoint });
    expect(line).toMatch(/nowhere: .*no such (file or )?directory/i);
  });

  it("on a mount point that is no directory and no regular file say so", async () => {
    const mountPoint = join(directory, "fifo");
    await run("mkfifo", [mountPoint]);
    expect(await refusedMount([sample.path], { mountPoint })).toMatch(/fifo: .*director/);
  });

  it("of unknown contents name the option that states the format", async () => {
    const path = join(directory, "contents.bin");
    await writeFile(path, "just text\n".repeat(1000));
    expect(await refusedMount([path])).toMatch(/contents\.bin: .*--format/);
    await expectRefusal(["info", path], [/contents\.bin: .*--format/]);
    await expectRefusal(["map", path], [/contents\.bin: .*--format/]);
    await mounted([path], { args: ["-r", "--format", "raw"] }, async (mount) => {
      const expected = join(directory, "contents.expected");
      await convertToRaw(path, "raw", expected);
      await expectSameBytes(join(mount.mountPoint, "contents.bin.raw"), expected, "stated raw");
    });
  });

  itOnce("of an unknown format name it and those that exist", async () => {
    const line = await refusedMount([sample.path], { args: ["--format", "vmdk"] });
    expect(line).toMatch(/vmdk/);
    expect(line).toMatch(/raw.*qcow2.*qed/);
  });

  itOnce.each(["qcow2", "qed"])(
    "of a raw file with --format %s say what is wrong with it",
    async (format) => {
      const path = join(directory, "flat.raw");
      await writeFile(path, Buffer.alloc(1_048_576, "x"));
      expect(await refusedMount([path], { args: ["--format", format] })).toContain("flat.raw: ");
    },
  );

  it("do not include --format raw of a qcow2 file, whose own bytes are shown", async () => {
    await mounted([sample.path], { args: ["-r", "--format", "raw"] }, async (mount) => {
      const expected = join(directory, "container");
      await convertToRaw(sample.path, "raw", expected);
      await expectSameBytes(mount.device(sample.path), expected, "container bytes");
    });
  });

  it("do not include an image behind a symbolic link, which gives the device its name", async () => {
    const path = join(directory, "link.qcow2");
    await symlink(sample.path, path);
    await mounted([path], {}, async (mount) => {
      await expectSameBytes(mount.device(path), sample.expected, "through a link");
    });
  });

  itOnce.each([
    ["luks", ["encrypt.format=luks", "encrypt.key-secret=key", "encrypt.iter-time=10"]],
    ["aes", ["encrypt.format=aes", "encrypt.key-secret=key"]],
  ])("of an image encrypted with %s say that it is encrypted", async (kind, options) => {
    const path = join(directory, `encrypted-${kind}.qcow2`);
    await createEncryptedImage(path, options, "1M");
    expect(await refusedMount([path])).toMatch(/encrypt/i);
  });

  itOnce("of no image at all, or without mount point, are one line too", async () => {
    await expectRefusal(["mount"], []);
    await expectRefusal(["mount", sample.path], []);
    await expectRefusal(["info"], []);
    await expectRefusal(["map"], []);
    await expectRefusal(["umount"], []);
  });

  itOnce("of unknown options and commands name them", async () => {
    await expectRefusal(
      ["mount", "--no-such-option", sample.path, directory],
      ["--no-such-option"],
    );
    await expectRefusal(["info", "--no-such-option", sample.path], ["--no-such-option"]);
    await expectRefusal(["no-such-command"], ["no-such-command"]);
    await expectRefusal(["info", "--output", "xml", sample.path], [/xml/]);
  });

  itOnce("of an empty file without a name that says raw ask for the format", async () => {
    const path = join(directory, "empty");
    await writeFile(path, "");
    expect(await refusedMount([path])).toMatch(/--format/);
  });
});
